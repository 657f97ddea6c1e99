"""Train one model from a config.

    piat-train --config=cifar10_resnet18:nmse+piat --workdir=runs/x --config.attack.eps=8/255
    piat-train --resume runs/x
    piat-train --config=cifar10_resnet18:nmse+piat --fields

A config is a name that is installed with the package, or a file; the method follows after the colon.
--config.FIELD=VALUE overrides any field. With --resume, the values are the run's; --config=FILE only says where your
method is defined. Several processes can train together, each on its own devices: under Slurm, Open MPI or Kubernetes
and on TPU pods with --distributed, elsewhere with --coordinator. They share the run's folder.
"""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from piat_jax.cli import arguments, distributed, errors
from piat_jax.core.checks import InputError

if TYPE_CHECKING:
    from piat_jax.experiment import Experiment, Run


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    overrides, rest = arguments.split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("config", None, "Name or file of a config, then a colon and the method.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of the run; new, empty, or with --resume its own.", flag_values=values)
    flags.DEFINE_boolean("resume", False, "Continue from the last checkpoint in workdir.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Replace the run in workdir.", flag_values=values)
    flags.DEFINE_boolean("fields", False, "Only list the fields with values and meanings.", flag_values=values)
    flags.DEFINE_boolean("show", False, "Only print the config and draw its learning rate.", flag_values=values)
    distributed.define_flags(values)
    folders = arguments.parse(values, rest, __doc__, positional=True)
    if folders and (len(folders) > 1 or values.workdir or not values.resume):
        raise InputError(
            f"unexpected argument {folders[-1]!r}; fields are set as --config.FIELD=VALUE, "
            "and only --resume takes a folder"
        )
    workdir = values.workdir or (folders[0] if folders else None)
    if values.resume and not workdir:
        raise InputError("--resume needs the folder of a run: piat-train --resume runs/x")
    if not values.config and not values.resume:
        raise InputError("--config is missing; see --help")
    if not workdir and not (values.fields or values.show):
        raise InputError("--workdir is missing; see --help")
    distributed.start(values)

    from piat_jax.experiment import Run, config, notes
    from piat_jax.experiment.console import note
    from piat_jax.experiment.listing import field_list, rate_lines

    run = Run(workdir or "")
    resumed = values.resume and workdir and (run.exists or not values.config)
    if resumed:
        experiment = config.resume(run, values.config, overrides, note=note)
    else:
        experiment = config.load(values.config, overrides, note=note)
    if values.fields or values.show:
        print(field_list(experiment) if values.fields else json.dumps(experiment.plain(), indent=2), flush=True)
        if values.show:
            print(rate_lines(experiment), file=sys.stderr)
        return
    for line in notes.no_tensorboard(overrides.get("log.tensorboard", False)):
        note(line)
    train_run(experiment, run, resume=values.resume, overwrite=values.overwrite, text=values.config)


def train_run(experiment: "Experiment", run: "Run", *, resume: bool, overwrite: bool, text: str | None) -> None:
    """Train, and print the command for evaluation."""
    from piat_jax.experiment import train
    from piat_jax.experiment.console import TrainingConsole

    console = TrainingConsole()
    train(experiment, run, resume=resume, overwrite=overwrite, listener=console)
    console.done(run, text or "" if experiment.needs_its_file else "")


def entry() -> None:
    """The console entry point."""
    distributed.leave(errors.run(main))


if __name__ == "__main__":
    entry()
