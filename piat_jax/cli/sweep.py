"""Train, evaluate and report several methods, seeds and settings side by side.

    piat-sweep --config=embedded --methods=pgd_at,piat,nmse+piat --seeds=0,1,2 --workdir=runs/seeds
    piat-sweep --config=embedded --methods=piat --sweep.attack.eps=4/255,8/255 --workdir=runs/eps
    piat-sweep --config=cifar10_resnet18 --methods=pgd_at,piat --workdir=runs/x --list > jobs.txt

Each run is an ordinary piat-train and piat-evaluate in a separate process. --sweep.FIELD=A,B sets any field to each
value (lists are separated by ;); --config.FIELD=VALUE sets it for all runs. A second call resumes a stopped sweep. The
report is in the folder `report` of --workdir. With --list, the command only prints a command line for each unfinished
run, for a scheduler. Methods with kd or hat need teachers with the same seed ("standard", "pgd_at"); these are added.
"""

import time
from collections.abc import Sequence

from absl import flags

from piat_jax.cli import arguments, errors
from piat_jax.cli.report import report
from piat_jax.core.checks import InputError, check_at_least
from piat_jax.core.files import expanded


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    overrides, rest = arguments.split_overrides(argv)
    swept, rest = arguments.split_overrides(rest, "sweep")
    values = arguments.new_flags()
    flags.DEFINE_string("config", None, "Name or file of a config, without a method.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of the runs.", flag_values=values)
    flags.DEFINE_list("methods", ["piat"], "Methods to compare.", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "Seeds for each method.", flag_values=values)
    flags.DEFINE_list("attacks", [], "Attacks of the evaluation; by default the config's.", flag_values=values)
    flags.DEFINE_integer("aa_examples", 0, "AutoAttack: the first n test examples; 0 = all.", flag_values=values)
    flags.DEFINE_integer("jobs", 0, "Parallel runs; 0 = depending on the machine.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Replace existing runs.", flag_values=values)
    flags.DEFINE_boolean("list", False, "Only print the commands of unfinished runs.", flag_values=values)
    arguments.parse(values, rest, __doc__)
    for flag in ("config", "workdir"):
        if not values[flag].value:
            raise InputError(f"--{flag} is missing; see --help")
    for flag in ("methods", "seeds"):
        if not values[flag].value:
            raise InputError(f"--{flag} is empty; give at least one")
    for flag in ("aa_examples", "jobs"):
        check_at_least(flag, values[flag].value, 0)
    if ":" in values.config:
        raise InputError(f"config={values.config!r} names a method; give it as --methods={values.config.split(':')[1]}")
    began = time.perf_counter()

    from piat_jax.experiment import config, sweep
    from piat_jax.training.progress import duration

    config.read(values.config)  # first: it may define methods
    folder = expanded(values.workdir)
    jobs = sweep.plan(
        values.config,
        folder,
        methods=values.methods,
        seeds=values.seeds,
        swept=sweep.swept_values(values.config, values.methods, swept),
        overrides=overrides,
        attacks=tuple(values.attacks),
        aa_examples=values.aa_examples,
    )
    sweep.check(jobs)  # reports every mistake before the first process starts
    if values.list:
        for line in sweep.command_lines(jobs):
            print(line)
        return
    sweep.run_jobs(jobs, overwrite=values.overwrite, at_once=values.jobs)
    print()
    report([job.folder for job in jobs], folder / "report")
    print(f"\nall done in {duration(time.perf_counter() - began)}")


def entry() -> None:
    """The console entry point."""
    errors.leave(errors.run(main))


if __name__ == "__main__":
    entry()
