"""Tables in the papers' form, with means over seeds."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from piat_jax.analysis.runs import RunResults, group_runs
from piat_jax.analysis.table import Column, Table, make_table

ATTACKS = ("clean", "pgd20", "cw20", "aa")
"""The order of the columns; other attacks follow in order of appearance."""
NORM_NAMES = {"linf": "L-inf", "l2": "L2", "l1": "L1"}
NORMS_OF_AA = {"aa-linf": "L-inf", "aa-l2": "L2", "aa-l1": "L1", "aa-union": "union"}


def best_final_table(runs: Sequence[RunResults]) -> Table:
    """The best and the final checkpoint under each attack, as in the PIAT paper's Table I.

    Diff is the distance of the two means, unsigned as in the paper; its deviation is that of the runs' signed
    differences. An attack that one seed of a method lacks has no mean. The best of each column is bold among the
    methods on one data set and model.

    Raises:
      InputError: from group_runs.
    """
    groups = group_runs(runs)
    columns: list[Column] = []
    for attack, name in attack_names(runs).items():
        for checkpoint in ("best", "final"):
            columns.append(Column(f"{name} {checkpoint.capitalize()}", accuracy_of(attack, checkpoint)))
        columns.append(Column(f"{name} Diff", _difference(attack), unsigned=True, lowest=True))
    counts = sorted({run.num_examples for run in runs})
    notes = [
        f"Accuracy (%) on {' or '.join(map(str, counts))} test examples; "
        f"best: chosen on {' or '.join(sorted({chosen_on(run) for run in runs}))}; Diff: |best - final|."
    ]
    if fewer := sorted({run.aa_examples for run in runs if run.aa_examples != run.num_examples}):
        notes.append(f"AutoAttack and its members on the first {' or '.join(map(str, fewer))} of them.")
    if len(counts) > 1:
        notes.append("The runs were evaluated on different numbers of test examples, so rows are not comparable.")
    for run in runs:
        if "final" in run.checkpoints and run.checkpoints["final"].epoch != run.epochs:
            notes.append(
                f"{run.folder}: the final checkpoint is of epoch {run.checkpoints['final'].epoch}/{run.epochs}."
            )
    return make_table(groups, columns, notes)


def worst_class_table(runs: Sequence[RunResults]) -> Table | None:
    """The worst class's accuracy of the best and the final checkpoint under each attack; None if unknown.

    Raises:
      InputError: from group_runs.
    """
    names = {
        attack: name
        for attack, name in attack_names(runs).items()
        if any(attack in point.by_class for run in runs for point in run.checkpoints.values())
    }
    if not names:
        return None
    columns = [
        Column(f"{name} {checkpoint.capitalize()}", _worst_of(attack, checkpoint))
        for attack, name in names.items()
        for checkpoint in ("best", "final")
    ]
    notes = ["Accuracy (%) of the class with the lowest accuracy; classes.csv has all classes of every run."]
    return make_table(group_runs(runs), columns, notes)


def averages_table(runs: Sequence[RunResults]) -> Table | None:
    """The final checkpoints of runs with several averages, for each average; None if there are none.

    Raises:
      InputError: from group_runs.
    """
    having = [run for run in runs if run.averages]
    if not having:
        return None
    groups = []
    for group in group_runs(having):
        groups.append(group)
        for name in dict.fromkeys(name for run in group.runs for name in run.averages):
            found = tuple(
                replace(run, checkpoints={"final": run.averages[name]}) for run in group.runs if name in run.averages
            )
            variant = ", ".join(filter(None, (group.variant, f"average {name}")))
            groups.append(replace(group, runs=found, variant=variant))
    columns = [Column(f"{name} Final", accuracy_of(attack, "final")) for attack, name in attack_names(having).items()]
    notes = ["Accuracy (%) of the final checkpoint, for the first average, then for each further one."]
    return make_table(groups, columns, notes)


def _worst_of(attack: str, checkpoint: str) -> Callable[[RunResults], float | None]:
    def value(run: RunResults) -> float | None:
        found = run.checkpoints[checkpoint].by_class.get(attack) if checkpoint in run.checkpoints else None
        return None if found is None else 100 * found.worst

    return value


def classes_csv(runs: Sequence[RunResults]) -> str:
    """CSV with a line for each run, checkpoint, attack and class: accuracy in %, empty for a class without examples."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "model", "method", "seed", "what", "attack", "class", "accuracy"])
    for run in runs:
        for name, point in run.checkpoints.items():
            for attack, found in point.by_class.items():
                about = [run.dataset, run.model, run.method, run.seed, name, attack]
                writer.writerows([*about, *pair] for pair in zip(found.names, map(_number, found.accuracy)))
    return out.getvalue()


def chosen_on(run: RunResults) -> str:
    """The images that chose a run's best epoch."""
    return f"{run.held_out} held-out training images" if run.held_out else "the test images, as in the papers"


def attack_names(runs: Sequence[RunResults]) -> dict[str, str]:
    """The attacks in any run's evaluation, in the order of the columns, and their names in the papers."""
    found = dict.fromkeys(attack for run in runs for point in run.checkpoints.values() for attack in point.accuracy)
    ordered = [*(name for name in ATTACKS if name in found), *(name for name in found if name not in ATTACKS)]
    return {name: attack_name(name) for name in ordered}


def attack_name(attack: str) -> str:
    """The name of an attack in the papers.

    >>> [attack_name(attack) for attack in ("clean", "pgd20", "mi_fgsm10", "aa", "apgd-t", "aa-l2", "aa-union")]
    ['Clean', 'PGD-20', 'MI-FGSM-10', 'AA', 'APGD-T', 'AA L2', 'AA union']
    """
    if attack in NORMS_OF_AA:
        return f"AA {NORMS_OF_AA[attack]}"
    return "Clean" if attack == "clean" else re.sub(r"(?<=[A-Z])(\d+)$", r"-\1", attack.upper().replace("_", "-"))


ABOUT_POINTS = ("dataset", "model", "method", "seed", "what", "epoch")
"""The columns of runs.csv before its accuracies."""


def runs_csv(runs: Sequence[RunResults]) -> str:
    """CSV of all runs: a line for each checkpoint and for each evaluation during training (accuracies in %)."""
    attacks = attack_names(runs)
    during = {name: f"test_{name}" for name in attacks}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*ABOUT_POINTS, *attacks])
    for run in runs:
        about = [run.dataset, run.model, run.method, run.seed]
        for name, point in run.checkpoints.items():
            writer.writerow([*about, name, point.epoch, *(_number(point.accuracy.get(attack)) for attack in attacks)])
        series = {name: dict(zip(*(part.tolist() for part in run.series(key)))) for name, key in during.items()}
        for epoch in sorted({epoch for values in series.values() for epoch in values}):
            writer.writerow([*about, "training", epoch, *(_number(series[name].get(epoch)) for name in attacks)])
    return out.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.4g}"


def stability_table(runs: Sequence[RunResults]) -> Table:
    """The stability of training, from accuracies during training under the attack that chose the best epoch.

    Raises:
      InputError: from group_runs.
    """
    names = dict.fromkeys(attack_name(run.select) for run in runs)
    name = next(iter(names)) if len(names) == 1 else "Robust"
    columns = [
        Column(f"{name} Best", lambda run: _percent(run, run.selected, np.max)),
        Column(f"{name} Final", lambda run: _percent(run, run.selected, lambda values: values[-1])),
        Column("Best - Final", lambda run: _percent(run, run.selected, _fall), lowest=True),
        Column("Oscillation", oscillation, lowest=True),
        Column("Clean Final", lambda run: _percent(run, "test_clean", lambda values: values[-1])),
    ]
    notes = [
        "Accuracy (%) during training; final: the last evaluated epoch; oscillation: mean |change| between evaluated "
        "epochs in the second half of training, in percentage points."
    ]
    if len(names) > 1:
        notes.append(f"Robust: under the selecting attack, {' or '.join(names)}, so not all rows are comparable.")
    if len({tuple(run.series(run.selected)[0]) for run in runs}) > 1:
        notes.append("The runs were evaluated after different epochs, so their oscillations are not comparable.")
    for run in runs:
        if run.metrics[-1]["epoch"] != run.epochs:
            notes.append(f"{run.folder}: trained for {run.metrics[-1]['epoch']} of {run.epochs} epochs.")
    return make_table(group_runs(runs), columns, notes)


def _fall(values: np.ndarray) -> float:
    return values.max() - values[-1]


def oscillation(run: RunResults) -> float | None:
    """Mean absolute change of the selected accuracy between evaluated epochs in the second half, in percentage points.

    It grows with the interval between evaluations, so compare only runs that were evaluated after the same epochs. None
    if fewer than two epochs of the second half were evaluated.
    """
    epochs, values = run.series(run.selected)
    late = values[2 * epochs >= run.epochs]
    return float(100 * np.abs(np.diff(late)).mean()) if len(late) > 1 else None


def accuracy_of(attack: str, checkpoint: str) -> Callable[[RunResults], float | None]:
    """A function that returns a run's accuracy under an attack in percent; None if it was not evaluated."""

    def value(run: RunResults) -> float | None:
        point = run.checkpoints.get(checkpoint)
        return None if point is None or attack not in point.accuracy else 100 * point.accuracy[attack]

    return value


def _difference(attack: str) -> Callable[[RunResults], float | None]:
    def value(run: RunResults) -> float | None:
        best, final = (accuracy_of(attack, checkpoint)(run) for checkpoint in ("best", "final"))
        return None if best is None or final is None else best - final

    return value


def _percent(run: RunResults, key: str, reduce: Callable[[np.ndarray], float]) -> float | None:
    values = run.series(key)[1]
    return float(100 * reduce(values)) if len(values) else None
