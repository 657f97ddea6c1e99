"""One of two processes that work together, for test_distributed.py: `two_processes.py folder port number`.

They train, are stopped by a signal to the second, go on, are stopped again while they evaluate an epoch, go on, and
evaluate the run. At the end the second is killed.
"""

import os
import signal
import sys
from pathlib import Path

import jax

from piat_jax.cli import distributed, errors, evaluate, train
from piat_jax.core.multihost import any_of_all
from piat_jax.evaluation import accuracy
from piat_jax.training.progress import TrainingProgress

TRAIN = [
    "--config=configs/embedded.py:nmse+piat",
    "--config.dataset.train_examples=40",
    "--config.dataset.test_examples=20",
    "--config.batch_size=8",
    "--config.epochs=2",
    "--config.optimizer.lr_epochs=0,2",
    "--config.optimizer.lr_values=0.2,0.1",
    "--config.model.options.width=2",
    "--config.model.options.stage_sizes=1",
    "--config.attack.steps=1",
    "--config.evaluation.every_epochs=1",
    "--config.evaluation.attacks=clean,pgd1",
    "--config.evaluation.select=pgd1",
    "--config.evaluation.batch_size=8",
    "--config.log.steps_per_chunk=2",
    "--noconfig.log.tensorboard",
]
EVALUATE = ["--attacks=clean,pgd1,square3"]


def stop_at(place, name, count):
    """Send SIGTERM at the count-th call of `place.name` that is to come; return the calls."""
    real, calls = getattr(place, name), []

    def call(*arguments):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    setattr(place, name, call)
    return calls


def main(folder, port, number):
    jax.config.update("jax_num_cpu_devices", 2)
    second, written = number == "1", []

    def audit(event, arguments):
        if event == "open" and str(arguments[0]).startswith(str(folder)) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(Path(arguments[0]).relative_to(folder))

    sys.addaudithook(audit)
    join = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"]
    run = folder / "run"
    if second:
        stop_at(TrainingProgress, "chunk", 2)
    code = errors.run(train.main, [*TRAIN, *join, f"--workdir={run}"])
    assert code == errors.SAVED, code
    # Of the six blocks of the first epoch's evaluation.
    blocks = stop_at(accuracy, "_correct_block", 2 if second else None)
    code = errors.run(train.main, [*TRAIN, f"--workdir={run}", "--resume"])
    assert (code, len(blocks)) == (errors.SAVED, 2), (code, blocks)
    assert errors.run(train.main, [*TRAIN, f"--workdir={run}", "--resume"]) == 0
    assert errors.run(evaluate.main, [*EVALUATE, f"--workdir={run}"]) == 0
    # orbax has each process write its arrays; everything else is the first one's.
    assert bool([path for path in written if "checkpoints" not in path.parts]) == (not second), written
    # What only the first can find out stops both.
    assert errors.run(train.main, [*TRAIN, f"--workdir={run}"]) == 2
    print("all is well", file=sys.stderr, flush=True)
    if second:
        os.kill(os.getpid(), signal.SIGKILL)
    # The other one sees it at the next thing that they do together.
    distributed.leave(errors.run(lambda arguments: any_of_all(False), []))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
