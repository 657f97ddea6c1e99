"""Train in `folder` and end as told, for test_killed.py: `killed_run.py folder event count`.

Events, of which the count-th kills: "chunk", "block" (of an evaluation) and "save" (while it is written). "compare"
finishes the run, trains another from nothing, and prints whether they are the same.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from piat_jax import checkpoint
from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import errors, train
from piat_jax.evaluation import accuracy
from piat_jax.experiment import run_training
from piat_jax.loggers import read_metrics
from piat_jax.training.progress import TrainingProgress

OPTIONS = [
    "--config=configs/embedded.py:pgd_at+cfa+swa+piat",
    "--config.dataset.train_examples=40",
    "--config.dataset.test_examples=20",
    "--config.batch_size=8",
    "--config.epochs=7",
    "--config.model.options.width=2",
    "--config.model.options.stage_sizes=1",
    "--config.attack.steps=1",
    "--config.average.start=0.3",
    "--config.evaluation.every_epochs=1",
    "--config.evaluation.attacks=clean,pgd1",
    "--config.evaluation.select=pgd1",
    "--config.evaluation.batch_size=8",
    "--config.checkpoint.every_epochs=2",
    "--config.log.steps_per_chunk=1",
    "--noconfig.log.tensorboard",
]


def kill_at(place, name, count, *, seconds=None):
    """Kill at the count-th call of `place.name`, or at most so many seconds after it has begun something."""
    real, calls = getattr(place, name), []

    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == count and seconds:
            real(*arguments, **options)
            time.sleep(random.uniform(0, seconds))
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(place, name, call)


def run(where):
    """The command's exit code."""
    return errors.run(train.main, [*OPTIONS, f"--workdir={where}", "--resume"])


def main(folder, event, count):
    if event == "chunk":
        kill_at(TrainingProgress, "chunk", count)
    elif event == "block":
        kill_at(accuracy, "_correct_block", count)
    elif event == "save":
        kill_at(checkpoint.ocp, "save_checkpointables_async", count, seconds=0.05)
    ended, real_fit = [], run_training.fit
    run_training.fit = lambda *arguments, **options: ended.append(real_fit(*arguments, **options))
    code = run(folder)
    if event == "compare":
        code += run(folder.with_name("whole"))
        jax.tree.map(np.testing.assert_array_equal, *ended)
        for name in ("best", "last"):
            one, other = (Checkpoints(f / "checkpoints").info(name) for f in (folder, folder.with_name("whole")))
            for record in (*one["metrics"], *other["metrics"]):
                for timing in ("images_per_second", "train_seconds", "evaluate_seconds", "peak_memory_bytes"):
                    del record[timing]
            assert one == other
        assert len(read_metrics(folder)) == 7
        print("the same")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
