"""Tables in the papers' form, over seeds."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from piat_jax.analysis.runs import CorruptionScores, Group, RunResults, group_runs

ATTACKS = ("clean", "pgd20", "cw20", "aa")
"""The order of the columns; other attacks follow in the order in which they appear."""
NORM_NAMES = {"linf": "L-inf", "l2": "L2", "l1": "L1"}
NORMS_OF_AA = {"aa-linf": "L-inf", "aa-l2": "L2", "aa-l1": "L1", "aa-union": "union"}
MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """Percent: a mean over seeds, and their sample standard deviation where there are several."""

    mean: float
    std: float | None = None
    best: bool = False
    digits: int = 2

    def __str__(self) -> str:
        digits = self.digits
        return f"{self.mean:.{digits}f}" + ("" if self.std is None else f" ± {self.std:.{digits}f}")


@dataclass(frozen=True)
class Table:
    """A table that renders to Markdown, CSV and plain text.

    A cell that is None has no value. The first `labels` columns are text, then comes the number of seeds.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | Cell | None, ...], ...]
    labels: int
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """Aligned, the best of each column bold, notes below."""
        cells = [
            [f"**{cell}**" if isinstance(cell, Cell) and cell.best else _text(cell) for cell in r] for r in self.rows
        ]
        widths = self._widths(cells, 3)
        rule = ["-" * w if i < self.labels else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        lines = [f"| {' | '.join(self._pad(line, widths))} |" for line in [[*self.columns], rule, *cells]]
        return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def to_text(self) -> str:
        """Aligned for the terminal, without markup."""
        cells = [[_text(cell) for cell in row] for row in self.rows]
        widths = self._widths(cells, 1)
        lines = ["  ".join(self._pad(line, widths)).rstrip() for line in [[*self.columns], *cells]]
        lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
        return "\n".join(lines) + "\n" + "".join(f"{note}\n" for note in self.notes)

    def to_csv(self) -> str:
        """Means with four decimals; a column with several seeds is followed by its standard deviation."""
        several = [any(isinstance(cell, Cell) and cell.std is not None for cell in cells) for cells in zip(*self.rows)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = [[name, f"{name} std"] if twice else [name] for name, twice in zip(self.columns, several)]
        writer.writerow([name for pair in names for name in pair])
        for row in self.rows:
            line = []
            for cell, twice in zip(row, several):
                std = None
                if isinstance(cell, Cell):
                    cell, std = f"{cell.mean:.4f}", cell.std
                line.append("" if cell is None else cell)
                if twice:
                    line.append("" if std is None else f"{std:.4f}")
            writer.writerow(line)
        return out.getvalue()

    def _indices(self) -> range:
        return range(len(self.columns))

    def _widths(self, cells: list[list[str]], least: int) -> list[int]:
        return [max(least, *(len(line[i]) for line in [self.columns, *cells])) for i in self._indices()]

    def _pad(self, line: Sequence[str], widths: list[int]) -> list[str]:
        return [t.ljust(w) if i < self.labels else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths))]


def best_final_table(runs: Sequence[RunResults]) -> Table:
    """The best and the final checkpoint under each attack: the form of the PIAT paper's Table I.

    Diff is the distance of the two means, unsigned as in the paper; its deviation is that of the signed differences
    of the runs. An attack that one seed of a method lacks has no mean. The best of each column is bold among the
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
        notes.append("The runs were evaluated on different numbers of test examples: their rows do not compare.")
    for run in runs:
        if "final" in run.checkpoints and run.checkpoints["final"].epoch != run.epochs:
            notes.append(
                f"{run.folder}: the final checkpoint is of epoch {run.checkpoints['final'].epoch}/{run.epochs}."
            )
    return _table(groups, columns, notes)


def worst_class_table(runs: Sequence[RunResults]) -> Table | None:
    """The accuracy of the worst class of the best and the final checkpoint under each attack; None where none is known.

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
    notes = ["Accuracy (%) of the class that has the lowest; classes.csv has all classes of every run."]
    return _table(group_runs(runs), columns, notes)


def averages_table(runs: Sequence[RunResults]) -> Table | None:
    """The final checkpoints of runs with several averages, of each average; None where there are none.

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
    notes = ["Accuracy (%) of the final checkpoint: of the first average, then of each further one."]
    return _table(groups, columns, notes)


def _worst_of(attack: str, checkpoint: str) -> Callable[[RunResults], float | None]:
    def value(run: RunResults) -> float | None:
        found = run.checkpoints[checkpoint].by_class.get(attack) if checkpoint in run.checkpoints else None
        return None if found is None else 100 * found.worst

    return value


def minimum_norm_table(runs: Sequence[RunResults]) -> Table | None:
    """The median of the smallest norms that minimum-norm attacks have found; None where none was run.

    Raises:
      InputError: from group_runs.
    """
    names = minimum_norm_names(runs)
    if not names:
        return None
    columns = [
        Column(f"{name} {checkpoint.capitalize()}", _median_of(attack, checkpoint), digits=5)
        for attack, name in names.items()
        for checkpoint in ("best", "final")
    ]
    notes = [
        "Median norm of the nearest misclassified images that were found, over the test examples that are correct when "
        "clean; pixels in [0, 1]."
    ]
    return _table(group_runs(runs), columns, notes)


def minimum_norm_names(runs: Sequence[RunResults]) -> dict[str, str]:
    """The minimum-norm attacks that any run was evaluated under, and what a table calls them.

    >>> minimum_norm_names([])
    {}
    """
    points = [point for run in runs for point in run.checkpoints.values()]
    found: dict[str, dict[str, None]] = {}
    for attack, curve in (item for point in points for item in point.minimum_norm.items()):
        found.setdefault(attack, {})[NORM_NAMES.get(curve.norm, curve.norm)] = None
    return {attack: f"{attack_name(attack)} ({' or '.join(norms)})" for attack, norms in found.items()}


def _median_of(attack: str, checkpoint: str) -> Callable[[RunResults], float | None]:
    def value(run: RunResults) -> float | None:
        found = run.checkpoints[checkpoint].minimum_norm.get(attack) if checkpoint in run.checkpoints else None
        return None if found is None else found.median

    return value


def corruption_table(runs: Sequence[RunResults], checkpoint: str) -> Table | None:
    """Accuracy under common corruptions of a checkpoint, by corruption; None where none was evaluated so.

    Raises:
      InputError: from group_runs.
    """
    found = [run.checkpoints[checkpoint].corruptions for run in runs if checkpoint in run.checkpoints]
    scores = [each for each in found if each]
    if not scores:
        return None

    def column(name: str, of: Callable[[CorruptionScores], float | None], *, lowest: bool = False) -> Column:
        def value(run: RunResults) -> float | None:
            point = run.checkpoints.get(checkpoint)
            number = of(point.corruptions) if point and point.corruptions else None
            return None if number is None else 100 * number

        return Column(name, value, lowest=lowest)

    names = dict.fromkeys(name for each in scores for name in each.by_corruption)
    normalised = {each.normalised for each in scores}
    columns = [
        column("Clean", lambda each: each.clean),
        column("Mean", lambda each: each.mean),
        column("mCE" if normalised == {True} else "Mean error", lambda each: each.mce, lowest=True),
        *([column("Extra", lambda each: each.extra)] if any(each.extra is not None for each in scores) else []),
        *(column(name, lambda each, name=name: each.by_corruption.get(name)) for name in names),
    ]
    counts = " or ".join(map(str, sorted({each.num_examples for each in scores})))
    how = "mCE: errors relative to AlexNet's." if normalised == {True} else "The mean error is not normalised."
    notes = [
        f"Accuracy (%) of the {checkpoint} checkpoint on {counts} images at each of five severities. Mean: over the "
        f"fifteen corruptions of the paper; extra ones apart. {how}"
    ]
    if len(normalised) > 1:
        notes.append("Some errors are relative to AlexNet's and some are not: their column does not compare.")
    return _table(group_runs(runs), columns, notes)


def classes_csv(runs: Sequence[RunResults]) -> str:
    """A line for each run, checkpoint, attack and class: its accuracy in %, empty where no example is of it."""
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
    """The attacks that any run was evaluated under, in the order of the columns, and what the papers call them."""
    found = dict.fromkeys(attack for run in runs for point in run.checkpoints.values() for attack in point.accuracy)
    ordered = [*(name for name in ATTACKS if name in found), *(name for name in found if name not in ATTACKS)]
    return {name: attack_name(name) for name in ordered}


def attack_name(attack: str) -> str:
    """What the papers call an attack.

    >>> [attack_name(attack) for attack in ("clean", "pgd20", "mi_fgsm10", "aa", "apgd-t", "aa-l2", "aa-union")]
    ['Clean', 'PGD-20', 'MI-FGSM-10', 'AA', 'APGD-T', 'AA L2', 'AA union']
    """
    if attack in NORMS_OF_AA:
        return f"AA {NORMS_OF_AA[attack]}"
    return "Clean" if attack == "clean" else re.sub(r"(?<=[A-Z])(\d+)$", r"-\1", attack.upper().replace("_", "-"))


def runs_csv(runs: Sequence[RunResults]) -> str:
    """Every run by itself: one line for each checkpoint, and for each evaluation during training (accuracies in %)."""
    attacks = attack_names(runs)
    during = {name: f"test_{name}" for name in attacks}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "model", "method", "seed", "what", "epoch", *attacks])
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
    """How steadily training went, from the accuracies during training under the attack that chose the best epoch.

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
        notes.append(f"Robust: under what chose the best epoch, which is {' or '.join(names)}: not all rows compare.")
    if len({tuple(run.series(run.selected)[0]) for run in runs}) > 1:
        notes.append("The runs were evaluated after different epochs: their oscillations do not compare.")
    for run in runs:
        if run.metrics[-1]["epoch"] != run.epochs:
            notes.append(f"{run.folder}: trained for {run.metrics[-1]['epoch']} of {run.epochs} epochs.")
    return _table(group_runs(runs), columns, notes)


def _fall(values: np.ndarray) -> float:
    return values.max() - values[-1]


def oscillation(run: RunResults) -> float | None:
    """Mean absolute change of the selected accuracy between evaluated epochs in the second half, in percentage points.

    It grows with the spacing of the evaluations; compare runs that were evaluated after the same epochs. None if fewer
    than two epochs of the second half were evaluated.
    """
    epochs, values = run.series(run.selected)
    late = values[2 * epochs >= run.epochs]
    return float(100 * np.abs(np.diff(late)).mean()) if len(late) > 1 else None


@dataclass(frozen=True)
class Column:
    """A column of numbers: what a run contributes, and which end is good."""

    name: str
    value: Callable[[RunResults], float | None]  # percent, or None
    lowest: bool = False
    unsigned: bool = False
    digits: int = 2


def accuracy_of(attack: str, checkpoint: str) -> Callable[[RunResults], float | None]:
    """What a run's checkpoint reached under an attack, in percent; None where it was not evaluated."""

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


def _table(groups: Sequence[Group], columns: Sequence[Column], notes: Sequence[str]) -> Table:
    """One row per group; data set and model are columns where they differ."""
    labels = {
        "Dataset": [group.dataset for group in groups],
        "Model": [group.model for group in groups],
    }
    labels = {name: texts for name, texts in labels.items() if len(set(texts)) > 1}
    labels["Method"] = [group.name for group in groups]
    seeds = [len(group.runs) for group in groups]
    if max(seeds) > 1:
        notes = [*notes, "Mean ± sample standard deviation over seeds."]
    cells = [_mark_best([_cell(column, group) for group in groups], groups, column.lowest) for column in columns]
    return Table(
        (*labels, "Seeds", *(column.name for column in columns)),
        tuple(zip(*labels.values(), seeds, *cells)),
        len(labels),
        tuple(notes),
    )


def _cell(column: Column, group: Group) -> Cell | None:
    cell = cell_of([column.value(run) for run in group.runs])
    if cell is None:
        return None
    return replace(cell, mean=abs(cell.mean) if column.unsigned else cell.mean, digits=column.digits)


def cell_of(values: Sequence[float | None]) -> Cell | None:
    """Mean and deviation over seeds; None where a seed has no value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Cell(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None)


def _mark_best(cells: list[Cell | None], groups: Sequence[Group], lowest: bool) -> list[Cell | None]:
    """Mark the best of each data set and model, and what prints the same; nothing where there is nothing to compare."""
    marked = list(cells)
    for block in {(group.dataset, group.model) for group in groups}:
        inside = {i: cells[i] for i, group in enumerate(groups) if (group.dataset, group.model) == block}
        rounded = {i: round(cell.mean, cell.digits) for i, cell in inside.items() if cell is not None}
        if len(rounded) < 2:
            continue
        best = (min if lowest else max)(rounded.values())
        for i, value in rounded.items():
            cell = cells[i]
            if value == best and cell is not None:
                marked[i] = replace(cell, best=True)
    return marked


def _text(cell: str | int | Cell | None) -> str:
    return MISSING if cell is None else str(cell)
