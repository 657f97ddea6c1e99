"""A report on runs as one HTML page, and its figures as files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from piat_jax.analysis import charts, examples
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
from piat_jax.analysis.radii import draw_radii, radius_groups
from piat_jax.analysis.runs import CHECKPOINTS, Group, RunResults, group_runs
from piat_jax.analysis.svg import Figures, file_name
from piat_jax.analysis.table import Column, Table, make_table
from piat_jax.analysis.tables import (
    NORM_NAMES,
    attack_names,
    averages_table,
    best_final_table,
    chosen_on,
    stability_table,
)
from piat_jax.core.checks import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_FOLDERS = 200
"""Maximum number of runs that are listed with their folders."""
OTHER_DEVICES = "Timings of different devices are not comparable."


@dataclass(frozen=True)
class Report:
    """The page and its figures."""

    html: str
    figures: dict[str, "Figure"]


def make_report(runs: Sequence[RunResults], *, scores: Sequence[str] = ()) -> Report:
    """Make a page on some runs; sections without data are left out.

    Args:
      runs: from load_run.
      scores: further metrics to draw over the epochs: "train_loss", "test_cw20".

    Raises:
      InputError: no run has one of `scores`; or from group_runs.
    """
    groups, figures = group_runs(runs), Figures()
    check_scores(runs, scores)
    titles = list(dict.fromkeys(group.dataset for group in groups))
    sections = [
        Section("compared", "Compared settings", _compared(groups)),
        Section("accuracy", "Best and final checkpoint", _accuracy(runs)),
        Section("curves", "Over the epochs", _curves(groups, figures, scores)),
        Section("radius", "Accuracy against the radius", _radius(runs, groups, figures)),
        Section("classes", "Classes", [*examples.classes(runs, groups), *examples.matrices(groups, figures)]),
        Section("broken", "Examples that AutoAttack broke", examples.broken(groups)),
        Section("images", "Images", examples.grids(groups, figures)),
        Section("beside", "Corruptions and transfer", _beside(runs)),
        Section("cost", "Time and cost", _cost(groups)),
        Section("reading", "How to read this", _reading(runs, groups)),
    ]
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {len(groups)} setting{'s' if len(groups) > 1 else ''}"
    return Report(page(f"Adversarial training on {' and '.join(titles)}", count, sections), figures.drawn)


def check_scores(runs: Sequence[RunResults], scores: Sequence[str]) -> None:
    """Raise InputError if no run has one of the metrics."""
    known = sorted({key for run in runs for entry in run.metrics for key, value in entry.items() if _is_number(value)})
    for key in scores:
        if not any(len(run.series(key)[0]) for run in runs):
            raise InputError(f"scores={key!r} is not in any run's metrics; they have {', '.join(known)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def radius(norm: str, eps: float) -> str:
    """A norm and a radius in the usual notation.

    >>> radius("linf", 8 / 255), radius("l2", 0.5), radius("linf", 0.1)
    ('L-inf, eps 8/255', 'L2, eps 0.5', 'L-inf, eps 25.5/255')
    """
    name = NORM_NAMES.get(norm.lower(), norm)
    return f"{name}, eps {255 * eps:.4g}/255" if norm.lower() == "linf" else f"{name}, eps {eps:.4g}"


def threat(fields: Mapping[str, Any], prefix: str = "") -> str:
    """The norm and radius in some fields; "" if they are missing."""
    norm, eps = fields.get(f"{prefix}norm"), fields.get(f"{prefix}eps")
    return radius(norm, float(eps)) if isinstance(norm, str) and isinstance(eps, int | float) else ""


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
    """One line for each combination of devices, versions and commit."""
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
            "Stability of training",
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
    drawn = []
    for key in dict.fromkeys([*selected, *charts.DEFAULT_SCORES, *scores]):
        score = charts.score_of(key)
        held_out = any(run.held_out for run in runs) and key.startswith("test_")
        where = " on held-out training images, if there are any" if held_out else ""
        if figure := charts.draw_score(groups, score):
            drawn.append(figures.add(f"curve_{file_name(key)}", figure, f"{score.title}{where}."))
    if figure := charts.draw_weights(groups):
        weights = "PIAT's weight λ of the past at the end of each epoch, computed from the config."
        drawn.append(figures.add("curve_piat_weight", figure, weights))
    if not drawn:
        return []
    content = [tag("div", *drawn, class_="figures")]
    if any(len(group.runs) > 1 for group in groups):
        content.append(note("Lines: means over seeds; bands: from the lowest seed to the highest."))
    if len(groups) > MOST_LINES:
        content.append(note(f"Drawn: the first {MOST_LINES} of {len(groups)} settings. Give fewer runs to see others."))
    return content


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
            drawn.append(figures.add(f"radius_{file_name(attack)}_{checkpoint}", figure, caption))
            break
    together = radius_groups(runs)
    for attack, name in attack_names([run for group in together for run in group.runs]).items():
        if attack != "clean" and (figure := draw_radii(together, attack)):
            caption = f"Accuracy of the best checkpoint under {name} at the radii of its evaluations."
            drawn.append(figures.add(f"radii_{file_name(attack)}", figure, caption))
    if drawn:
        content.append(tag("div", *drawn, class_="figures"))
    if found := minimum_norm_table(runs):
        content.append(table(found))
    return content


def _beside(runs: Sequence[RunResults]) -> list[Markup]:
    tables = [*(corruption_table(runs, name) for name in CHECKPOINTS), transfer_table(runs)]
    return [table(found) for found in tables if found]


def _cost(groups: Sequence[Group]) -> list[Markup]:
    runs = [run for group in groups for run in group.runs]
    columns = [
        Column("Training (min)", lambda run: _total(run, "train_seconds", 60), lowest=True),
        Column("Monitoring (min)", lambda run: _total(run, "evaluate_seconds", 60), lowest=True),
        Column("Images/s in training", _rate),
        Column("Memory (GB)", _memory, lowest=True),
        *(Column(f"{name} (s)", _seconds_of(attack), lowest=True) for attack, name in attack_names(runs).items()),
    ]
    notes = [
        "Monitoring: the evaluations during training. Images/s: median over epochs. Memory: the peak in training, of "
        "one device on a GPU or TPU, of the process on a CPU. Seconds of an attack: the evaluation of one checkpoint, "
        "including compilation."
    ]
    made = make_table(groups, columns, notes)
    made = _without_empty(made)
    if not made:
        return []
    kinds = {tuple(run.description.get("devices") or ()) for run in runs}
    return [table(made), *([note(OTHER_DEVICES)] if len(kinds) > 1 else [])]


def _seconds_of(attack: str) -> Callable[[RunResults], float | None]:
    def value(run: RunResults) -> float | None:
        found = next((each for name in CHECKPOINTS if (each := examples.read_predictions(run, name, attack))), None)
        return found.seconds if found else None

    return value


def _without_empty(found: Table) -> Table | None:
    """The table without empty columns; None if all are empty."""
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


def _memory(run: RunResults) -> float | None:
    values = run.series("peak_memory_bytes")[1]
    return float(values.max() / 1e9) if len(values) else None


def _reading(runs: Sequence[RunResults], groups: Sequence[Group]) -> list[Markup]:
    """The meaning of the numbers, and their limits."""
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
        lines.append(f"The number in an attack's name is its number of steps; a step is {sizes}; it starts {times}.")
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
    error = 100 * float(np.sqrt(0.25 / max(counts[0], 1)))
    lines.append(
        f"Accuracies are on {' or '.join(map(str, counts))} test images; the standard error of each is at most "
        f"{error:.1f} points."
    )
    lines.append(
        f"The best checkpoint was chosen on {' or '.join(sorted({chosen_on(run) for run in runs}))}; the final one is "
        "that of the last epoch."
    )
    single = sum(len(group.runs) == 1 for group in groups)
    if single:
        what = "Every setting was" if single == len(groups) else f"{single} of {len(groups)} settings were"
        lines.append(f"{what} run with one seed, so the variation over seeds is unknown.")
    else:
        lines.append("± is the sample standard deviation over seeds, not a confidence interval.")
    unfinished = sum(run.metrics[-1]["epoch"] != run.epochs for run in runs)
    if unfinished:
        lines.append(f"{unfinished} of {len(runs)} runs have not reached their last epoch.")
    return [tag("ul", *(tag("li", line) for line in lines))]
