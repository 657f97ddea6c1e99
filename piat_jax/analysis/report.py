"""A report of runs as one HTML page, and its figures as files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from piat_jax.analysis import charts
from piat_jax.analysis.curves import MOST_LINES, draw_norms
from piat_jax.analysis.evaluation_tables import (
    corruption_table,
    minimum_norm_names,
    minimum_norm_table,
    transfer_table,
)
from piat_jax.analysis.html import Markup, grid, note, table, tag
from piat_jax.analysis.page import Section, page
from piat_jax.analysis.pairs import find_pairs, piat_table
from piat_jax.analysis.runs import CHECKPOINTS, Group, RunResults, group_runs
from piat_jax.analysis.svg import framed
from piat_jax.analysis.table import Column, Table, make_table
from piat_jax.analysis.tables import (
    NORM_NAMES,
    attack_names,
    averages_table,
    best_final_table,
    chosen_on,
    stability_table,
    worst_class_table,
)
from piat_jax.core.checks import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_FOLDERS = 200
"""Runs that are listed with their folders."""
OTHER_DEVICES = "Timings of different devices do not compare."


@dataclass
class Figures:
    """The figures of a page, by name, in order."""

    drawn: dict[str, "Figure"] = field(default_factory=dict)

    def add(self, name: str, figure: "Figure | None", caption: str, *, kind: str = "") -> Markup | None:
        """The element of a figure, which is kept under its name; None where there is none."""
        if figure is None:
            return None
        self.drawn[name] = figure
        return framed(figure, name=name, caption=caption, kind=kind)


@dataclass(frozen=True)
class Report:
    """What is written."""

    html: str
    figures: dict[str, "Figure"]


def make_report(runs: Sequence[RunResults], *, scores: Sequence[str] = ()) -> Report:
    """A page of some runs with whatever is known of them; what nothing is known of has no section.

    Args:
      runs: what load_run returned.
      scores: metrics to draw over the epochs, beside those of every report: "train_loss", "test_cw20".

    Raises:
      InputError: no run has one of `scores`; from group_runs.
    """
    groups, figures = group_runs(runs), Figures()
    check_scores(runs, scores)
    titles = list(dict.fromkeys(group.dataset for group in groups))
    sections = [
        Section("compared", "What was compared", _compared(groups)),
        Section("accuracy", "Best and final checkpoint", _accuracy(runs)),
        Section("curves", "Over the epochs", _curves(groups, figures, scores)),
        Section("radius", "Accuracy against the radius", _radius(runs, groups, figures)),
        Section("classes", "Classes", _classes(runs, groups)),
        Section("beside", "Corruptions and transfer", _beside(runs)),
        Section("cost", "Time and cost", _cost(groups)),
        Section("reading", "How to read this", _reading(runs, groups)),
    ]
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {len(groups)} setting{'s' if len(groups) > 1 else ''}"
    return Report(page(f"Adversarial training on {' and '.join(titles)}", count, sections), figures.drawn)


def check_scores(runs: Sequence[RunResults], scores: Sequence[str]) -> None:
    """Raise InputError where no run has a metric."""
    known = sorted({key for run in runs for entry in run.metrics for key, value in entry.items() if _is_number(value)})
    for key in scores:
        if not any(len(run.series(key)[0]) for run in runs):
            raise InputError(f"scores={key!r} is in no run's metrics; they have {', '.join(known)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def radius(norm: str, eps: float) -> str:
    """A norm and a radius as people write them.

    >>> radius("linf", 8 / 255), radius("l2", 0.5), radius("linf", 0.1)
    ('L-inf, eps 8/255', 'L2, eps 0.5', 'L-inf, eps 25.5/255')
    """
    name = NORM_NAMES.get(norm.lower(), norm)
    return f"{name}, eps {255 * eps:.4g}/255" if norm.lower() == "linf" else f"{name}, eps {eps:.4g}"


def threat(fields: Any, prefix: str = "") -> str:
    """The norm and radius that fields name; "" where they do not."""
    norm, eps = fields.get(f"{prefix}norm"), fields.get(f"{prefix}eps")
    return radius(norm, eps) if isinstance(norm, str) and _is_number(eps) else ""


def _compared(groups: Sequence[Group]) -> list[Markup]:
    heads = ("Method", "Data set", "Network", "Trained under", "Evaluated under", "Epochs", "Seeds")
    rows = []
    for group in groups:
        run = group.runs[0]
        steps = run.fields.get("attack.steps")
        trained = ", ".join(filter(None, [threat(run.fields, "attack."), f"{steps} steps" if steps else ""]))
        seeds = ", ".join(str(run.seed) for run in group.runs)
        judged = threat(run.settings) or threat(run.fields, "evaluation.")
        rows.append((group.name, group.dataset, group.model, trained, judged, run.epochs, seeds))
    content = [grid(heads, rows, labels=5)]
    runs = [run for group in groups for run in group.runs]
    if lines := list(_environments(runs)):
        content.append(tag("ul", *(tag("li", line) for line in lines)))
    listed = [(str(run.folder), run.method, run.seed) for run in runs[:MOST_FOLDERS]]
    inside = [grid(("Folder", "Method", "Seed"), listed, labels=2)]
    if len(runs) > MOST_FOLDERS:
        inside.append(note(f"The first {MOST_FOLDERS} of {len(runs)} runs."))
    content.append(
        tag("details", tag("summary", f"The {len(runs)} folders" if len(runs) > 1 else "The folder"), *inside)
    )
    return content


def _environments(runs: Sequence[RunResults]) -> Iterator[str]:
    """A line for each combination of devices, versions and commit."""
    found: dict[str, int] = {}
    for run in runs:
        about = run.description
        devices = [str(each) for each in about.get("devices") or ()]
        kinds = ", ".join(f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices))
        versions = ", ".join(f"{name} {version}" for name, version in (about.get("versions") or {}).items() if version)
        commit = (
            f"commit {str(about['commit'])[:12]}" + "+" * str(about["commit"]).endswith("+")
            if about.get("commit")
            else ""
        )
        machine = f"({about['machine']})" if about.get("machine") else ""
        line = "; ".join(filter(None, [f"{kinds} {machine}".strip(), versions, commit]))
        if line:
            found[line] = found.get(line, 0) + 1
    for line, count in found.items():
        yield f"Trained on {line}." if len(found) == 1 else f"{count} run{'s' if count > 1 else ''} on {line}."


def _accuracy(runs: Sequence[RunResults]) -> list[Markup]:
    content = [table(best_final_table(runs))]
    for title, found in (
        ("Averages of the weights", averages_table(runs)),
        (
            "How steadily training went",
            stability_table(runs) if any(len(run.series(run.selected)[0]) for run in runs) else None,
        ),
    ):
        if found:
            content += [tag("h3", title), table(found)]
    if pairs := find_pairs(runs):
        content.append(tag("h3", "Without and with PIAT"))
        content += [table(piat_table(pairs, name)) for name in CHECKPOINTS]
    return content


def _curves(groups: Sequence[Group], figures: Figures, scores: Sequence[str]) -> list[Markup]:
    runs = [run for group in groups for run in group.runs]
    selected = list(dict.fromkeys(run.selected for run in runs))
    several = any(len(group.runs) > 1 for group in groups)
    band = " Lines: means over seeds; bands: from the lowest seed to the highest." if several else ""
    found = []
    for key in dict.fromkeys([*selected, *charts.DEFAULT_SCORES, *scores]):
        score = charts.score_of(key)
        held_out = any(run.held_out for run in runs) and key.startswith("test_")
        where = " on held-out training images, where there are some" if held_out else ""
        found.append(
            figures.add(f"curve_{_file_name(key)}", charts.draw_score(groups, score), f"{score.title}{where}.{band}")
        )
    weights = "Weight λ that PIAT gives to the past at each epoch's end, by the config."
    found.append(figures.add("curve_piat_weight", charts.draw_weights(groups), weights))
    drawn = [each for each in found if each]
    if not drawn:
        return []
    content = [tag("div", *drawn, class_="figures")]
    if len(groups) > MOST_LINES:
        content.append(note(f"Drawn: the first {MOST_LINES} of {len(groups)} settings. Give fewer runs to see others."))
    return content


def _file_name(key: str) -> str:
    """A metric's name as that of a file and an element."""
    return "".join(each if (each.isalnum() and each.isascii()) or each in "_-" else "_" for each in key)


def _radius(runs: Sequence[RunResults], groups: Sequence[Group], figures: Figures) -> list[Markup]:
    content: list[Markup] = []
    shown = [run for group in groups[:MOST_LINES] for run in group.runs]
    drawn = []
    for attack, name in minimum_norm_names(shown).items():
        for checkpoint in CHECKPOINTS:
            points = [run.checkpoints.get(checkpoint) for run in shown]
            if not any(point and attack in point.minimum_norm for point in points):
                continue
            try:
                figure = draw_norms(shown, attack, checkpoint=checkpoint)
            except InputError as error:  # several norms
                content.append(note(f"Not drawn: {error}."))
                break
            caption = f"Accuracy of the {checkpoint} checkpoint at each radius, by {name}."
            drawn.append(figures.add(f"radius_{_file_name(attack)}_{checkpoint}", figure, caption))
            break
    if drawn:
        content.append(tag("div", *drawn, class_="figures"))
    if found := minimum_norm_table(runs):
        content.append(table(found))
    return content


def _classes(runs: Sequence[RunResults], groups: Sequence[Group]) -> list[Markup]:
    content: list[Markup] = []
    if found := worst_class_table(runs):
        content += [table(found)]
    for attack, name in attack_names(runs).items():
        if rows := list(_class_rows(groups, attack)):
            names = rows[0][1]
            shown = list(range(len(names)))
            if len(names) > charts.MOST_CLASSES:
                means = np.nanmean([np.array(values, float) for _, _, values in rows], axis=0)
                shown = np.argsort(means, kind="stable")[: charts.MOST_CLASSES].tolist()
            cells = [[label, *(_shade(values[i]) for i in shown)] for label, _, values in rows]
            content.append(tag("h3", f"{name}: accuracy of each class (%)"))
            content.append(grid(["Method", *(names[i] for i in shown)], cells))
            if len(shown) < len(names):
                content.append(note(f"The {len(shown)} lowest of {len(names)} classes; classes.csv has all."))
    return content


def _class_rows(groups: Sequence[Group], attack: str) -> Iterator[tuple[str, tuple[str, ...], list[float | None]]]:
    """Name, classes and accuracies (%, mean over seeds) of the groups that have the same classes as the first."""
    first: tuple[str, ...] = ()
    for group in groups:
        point = next((name for name in CHECKPOINTS if all(name in run.checkpoints for run in group.runs)), "")
        found = [run.checkpoints[point].by_class.get(attack) for run in group.runs] if point else []
        known = [each for each in found if each]
        if not known or len(known) < len(found):
            continue
        first = first or known[0].names
        if known[0].names != first:
            continue
        values = [[each.accuracy[i] for each in known] for i in range(len(first))]
        means = [None if None in each else 100 * float(np.mean(each)) for each in values]  # type: ignore[arg-type]
        yield f"{group.name}, {point}", first, means


def _shade(value: float | None) -> Markup | str:
    return "\N{EN DASH}" if value is None else f"{value:.1f}"


def _beside(runs: Sequence[RunResults]) -> list[Markup]:
    tables = [*(corruption_table(runs, name) for name in CHECKPOINTS), transfer_table(runs)]
    return [table(found) for found in tables if found]


def _cost(groups: Sequence[Group]) -> list[Markup]:
    columns = [
        Column("Training (min)", lambda run: _total(run, "train_seconds", 60), lowest=True),
        Column("Monitoring (min)", lambda run: _total(run, "evaluate_seconds", 60), lowest=True),
        Column("Images/s in training", _rate),
    ]
    made = make_table(groups, columns, ["Monitoring: the evaluations during training. Images/s: the median epoch's."])
    made = _without_empty(made)
    if not made:
        return []
    kinds = {tuple(run.description.get("devices") or ()) for group in groups for run in group.runs}
    return [table(made), *([note(OTHER_DEVICES)] if len(kinds) > 1 else [])]


def _without_empty(found: Table) -> Table | None:
    """The table without columns that have no number; None where all are so."""
    fixed = found.labels + 1
    kept = [i for i in range(len(found.columns)) if i < fixed or any(row[i] is not None for row in found.rows)]
    if len(kept) == fixed:
        return None
    rows = tuple(tuple(row[i] for i in kept) for row in found.rows)
    return Table(tuple(found.columns[i] for i in kept), rows, found.labels, found.notes)


def _total(run: RunResults, key: str, unit: float) -> float | None:
    values = run.series(key)[1]
    return float(values.sum() / unit) if len(values) == len(run.metrics) and len(values) else None


def _rate(run: RunResults) -> float | None:
    values = run.series("images_per_second")[1]
    return float(np.median(values)) if len(values) else None


def _reading(runs: Sequence[RunResults], groups: Sequence[Group]) -> list[Markup]:
    """What the numbers are, and what they do not say."""
    lines: list[str] = []
    radii = list(
        dict.fromkeys(filter(None, (threat(run.settings) or threat(run.fields, "evaluation.") for run in runs)))
    )
    if radii:
        lines.append(
            f"Attacks during evaluation stay within {' or '.join(radii)} of the clean image, pixels in [0, 1]."
        )
    steps: list[Any] = [run.settings.get("step_size") for run in runs]
    if known := sorted({float(value) for value in steps if _is_number(value)}):
        sizes = " or ".join(f"{value:.4g} ({255 * value:.3g}/255)" for value in known)
        restarts = sorted({run.settings.get("restarts", 1) for run in runs})
        times = "once" if restarts == [1] else f"{' or '.join(map(str, restarts))} times"
        lines.append(f"The number in an attack's name is that of its steps; a step is {sizes}; it is started {times}.")
    names = attack_names(runs)
    if any(name.startswith("aa") for name in names):
        counts = " or ".join(map(str, sorted({run.aa_examples for run in runs})))
        lines.append(
            f"AA is AutoAttack, on the first {counts} test images. Other attacks are weaker, so accuracies under them "
            "are upper bounds."
        )
    elif len(names) > 1:
        lines.append("AutoAttack was not run: accuracies under the other attacks are upper bounds of robust accuracy.")
    counts = sorted({run.num_examples for run in runs})
    error = 100 * float(np.sqrt(0.25 / counts[0]))
    lines.append(
        f"Accuracies are on {' or '.join(map(str, counts))} test images; the standard error of one is at most "
        f"{error:.1f} points."
    )
    lines.append(
        f"The best checkpoint was chosen on {' or '.join(sorted({chosen_on(run) for run in runs}))}; the final one is "
        "that of the last epoch."
    )
    single = sum(len(group.runs) == 1 for group in groups)
    if single:
        what = "Every setting was" if single == len(groups) else f"{single} of {len(groups)} settings were"
        lines.append(f"{what} run with one seed: nothing here says how much another seed would change.")
    else:
        lines.append("± is the sample standard deviation over seeds, not an interval.")
    unfinished = sum(run.metrics[-1]["epoch"] != run.epochs for run in runs)
    if unfinished:
        lines.append(f"{unfinished} of {len(runs)} runs have not come to their last epoch.")
    return [tag("ul", *(tag("li", line) for line in lines))]
