"""Training from Python in one call."""

import os
from collections.abc import Mapping
from typing import Any

from piat_jax.experiment import config as configs
from piat_jax.experiment import notes
from piat_jax.experiment.console import TrainingConsole
from piat_jax.experiment.run import Run
from piat_jax.experiment.run_training import Listener
from piat_jax.experiment.run_training import train as train_experiment


def train(
    config: Any,
    workdir: str | os.PathLike[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
    **fields: Any,
) -> Run:
    """Train an experiment and return its run; progress is shown in lines, and on a terminal as a bar.

    Args:
      config: `NAME:METHOD` or `FILE.py:METHOD` as for piat-train, the result of a config file's `get_config`, or an
        `Experiment`. With `resume`, None is the run's own, and a file is only executed for what it defines.
      workdir: the run's folder: new or empty, or, with `resume` or `overwrite`, one that holds a run.
      overrides: fields to change: `{"attack.eps": 8 / 255, "model.options.width": 16}`.
      resume: continue from the last checkpoint in `workdir`.
      overwrite: replace the run in `workdir`.
      listener: receives the progress instead of printing it.
      **fields: further fields to change, if they have no group: `epochs=3`, `seed=1`, `batch_size=64`.

    Returns:
      The run: `run.metrics()` has a record of each epoch, and `piat_jax.load(run.folder)` the network.

    Raises:
      InputError: an argument or the config is invalid (one line per problem of the config), or training diverged.
      SavedAndStopped: Ctrl-C or SIGTERM; the state was saved, and `resume=True` continues from it.
    """
    changes = {**(overrides or {}), **fields}
    if isinstance(config, os.PathLike):
        config = os.fspath(config)
    run = Run(workdir)
    goes_on = resume and run.exists
    experiment = configs.resume(run, config, changes) if goes_on else configs.resolve(config, changes)
    console = listener or TrainingConsole()
    for line in notes.no_tensorboard(changes.get("log.tensorboard", False)):
        console.note(line)
    train_experiment(experiment, run, resume=resume, overwrite=overwrite, listener=console)
    if isinstance(console, TrainingConsole):
        console.done(run)
    return run
