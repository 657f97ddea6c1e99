"""One of two processes that train on encoded images, for test_encoded_processes.py: `folder port number` follow.

The second is stopped by a signal in the middle of the second epoch, and so both are.
"""

import sys
from pathlib import Path

import jax

from piat_jax.cli import errors, train
from piat_jax.training.progress import TrainingProgress
from tests.cli.two_processes import stop_at

TRAIN = [
    "--config=configs/embedded.py:nmse+piat",
    "--config.dataset.image_size=16",
    "--config.batch_size=8",
    "--config.epochs=2",
    "--config.optimizer.lr_epochs=0,2",
    "--config.optimizer.lr_values=0.2,0.1",
    "--config.model.options.width=2",
    "--config.model.options.stage_sizes=1",
    "--config.attack.steps=1",
    "--config.evaluation.every_epochs=1",
    "--config.evaluation.attacks=clean",
    "--config.evaluation.select=clean",
    "--config.log.steps_per_chunk=1",
    "--noconfig.log.tensorboard",
]


def main(folder, port, number):
    jax.config.update("jax_num_cpu_devices", 2)
    join = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"]
    if number == "1":
        stop_at(TrainingProgress, "chunk", 7)
    name = f"--config.dataset.name={folder / 'set'}"
    code = errors.run(train.main, [*TRAIN, name, *join, f"--workdir={folder / 'run'}"])
    assert code == errors.SAVED, code


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
