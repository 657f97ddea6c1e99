"""Evaluate the best and the final checkpoint of runs under attacks, on the test set.

    piat-evaluate --workdir=runs/x --attacks=clean,pgd20,cw20,aa

Writes evaluation.json into each run folder. An attack is a name and its number of steps: clean, fgsm, pgd20, cw20,
mi_fgsm10; mt20 is PGD targeted at each other class in turn, pgd_ll20 at the least likely class. "aa" is AutoAttack's
standard version, "aa-plus" its larger one. apgd-ce, apgd-dlr, apgd-t, fab, fab-t and square are its members alone, with
AutoAttack's number of steps unless one is given (apgd-ce20, square1000). aa-union is AutoAttack in L-inf, L2 and L1,
each with its radius in evaluation.union_eps, and the accuracy under all three; aa-linf, aa-l2 and aa-l1 are its parts.
AutoAttack's results for each example are in the run's folder robustness. --resume continues stopped attacks and keeps
the accuracies of attacks that were run before. With --config.evaluation.attack_precision=tensorfloat32 AutoAttack
attacks in TF32, if the GPU has it, and judges in float32.

ddn100, fmn100 and fab-norm100 search for the nearest misclassified image. Their median norm and the accuracy as a
function of the radius are kept in addition to the accuracy at evaluation.eps. --corruptions=FOLDER evaluates on
CIFAR-10-C, CIFAR-100-C, Tiny-ImageNet-C or ImageNet-C, and writes corruptions/best.json and final.json.

--from=runs/b crafts the images on another run's network: on its best checkpoint, or on the one whose folder is given.

Several folders may be given as arguments: piat-evaluate runs/*
Several processes can evaluate together, as in training.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from piat_jax.cli import arguments, distributed, errors
from piat_jax.core.checks import InputError, check_at_least

if TYPE_CHECKING:
    from piat_jax.experiment import Experiment, Run


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    overrides, rest = arguments.split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string(
        "config",
        None,
        "File that defines the run's method; or a config and method instead of the run's.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "checkpoint",
        [],
        "best, final, or final:swa for a further average; by default all. Or a folder runs/x/checkpoints/best.",
        flag_values=values,
    )
    flags.DEFINE_list("attacks", None, "Attacks; by default the config's.", flag_values=values)
    flags.DEFINE_integer("num_examples", 0, "The first n test examples; 0 = all.", flag_values=values)
    flags.DEFINE_integer(
        "aa_examples", 0, "AutoAttack and its members: the first n of these; 0 = all.", flag_values=values
    )
    flags.DEFINE_string(
        "corruptions",
        None,
        "Folder of CIFAR-10-C, CIFAR-100-C, Tiny-ImageNet-C or ImageNet-C; without --attacks only these.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "from",
        None,
        "Folder of another run, or of its checkpoint: the attacks' images are crafted on its network.",
        flag_values=values,
    )
    flags.DEFINE_boolean("resume", False, "Keep earlier results, and continue stopped attacks.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Evaluate again and replace the results.", flag_values=values)
    distributed.define_flags(values)
    folders = [Path(text) for text in arguments.parse(values, rest, __doc__, positional=True)]
    if values.workdir:
        folders.insert(0, Path(values.workdir))

    from piat_jax.checkpoint import Checkpoints
    from piat_jax.experiment.run import ON_DISK, parse_checkpoint

    checkpoints = values.checkpoint
    if not folders and len(checkpoints) == 1 and Path(checkpoints[0]).parent.name == Checkpoints.FOLDER:
        folders, name = [Path(checkpoints[0]).parent.parent], Path(checkpoints[0]).name
        checkpoints = [{kept: known for known, kept in ON_DISK.items()}.get(name, name)]
    if not folders:
        raise InputError("--workdir is missing; see --help")
    for name in checkpoints:
        parse_checkpoint(name)
    if values["attacks"].present and not values.attacks:
        raise InputError(
            "--attacks is empty; give attacks, such as --attacks=clean,pgd20, or leave it out for the config's"
        )
    for name in ("num_examples", "aa_examples"):
        check_at_least(name, values[name].value, 0)
    if values.resume and values.overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    if values.attacks:
        overrides["evaluation.final_attacks"] = ",".join(values.attacks)

    from piat_jax.core.cores import use_one_device_a_core
    from piat_jax.core.multihost import on_first
    from piat_jax.experiment import Run, evaluate
    from piat_jax.experiment.console import CorruptionConsole, EvaluationConsole
    from piat_jax.experiment.run_corruptions import evaluate_corruptions
    from piat_jax.experiment.run_evaluation import check_not_evaluated
    from piat_jax.experiment.run_transfer import evaluate_transfer, source_of, transferable

    use_one_device_a_core()
    distributed.start(values)
    runs = [Run(folder) for folder in folders]
    if len(runs) > 1 and any(run.exists for run in runs):  # as from runs/*
        for run in runs:
            if not run.exists:
                print(f"note: {run.folder} is not a run and is left out", file=sys.stderr)
        runs = [run for run in runs if run.exists]
    experiments = [experiment_of(run, values.config, overrides) for run in runs]
    made_on = source_of(values["from"].value) if values["from"].value else None
    plain = made_on is None and bool(values.attacks or not values.corruptions)
    if plain and not values.resume and not values.overwrite:
        on_first(lambda: [check_not_evaluated(*pair, checkpoints) for pair in zip(experiments, runs)])
    options = {"checkpoints": checkpoints, "num_examples": values.num_examples}
    options |= {"resume": values.resume, "overwrite": values.overwrite}
    for experiment, run in zip(experiments, runs):
        if values.corruptions:
            evaluate_corruptions(experiment, run, values.corruptions, listener=CorruptionConsole(), **options)
        if made_on:
            chosen = experiment if values.attacks else transferable(experiment)
            evaluate_transfer(chosen, run, made_on, listener=EvaluationConsole(), **options)
        if not plain:
            continue
        evaluate(
            experiment,
            run,
            aa_examples=values.aa_examples,
            listener=EvaluationConsole(),
            **options,
        )


def experiment_of(run: "Run", text: str | None, overrides: dict[str, str]) -> "Experiment":
    """The run's experiment, or that of a named config, with overrides; a file only defines parts of a run's."""
    from piat_jax.experiment import config
    from piat_jax.experiment.console import note
    from piat_jax.experiment.experiment import differences

    if text and run.exists and config.is_file(text):
        config.define(text, run)
    elif text:
        given = config.load(text, overrides, trains=False, note=note)
        changed = differences(run.experiment().plain(), given.plain()) if run.exists else []
        if told := [line for line in changed if not line.startswith(("log.", "checkpoint."))]:
            print(f"note: --config differs from the training of {run.folder}: {'; '.join(told)}", file=sys.stderr)
        return given
    return config.resolve(run.experiment(), overrides, trains=False, note=note)


def entry() -> None:
    """The console entry point."""
    distributed.leave(errors.run(main))


if __name__ == "__main__":
    entry()
