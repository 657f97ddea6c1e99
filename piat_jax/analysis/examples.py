"""Sections of a report on classes and single examples."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from piat_jax.analysis import charts
from piat_jax.analysis.grids import draw_grid
from piat_jax.analysis.html import Markup, grid, note, table, tag
from piat_jax.analysis.predictions import Predictions, path_of
from piat_jax.analysis.runs import CHECKPOINTS, Group, RunResults, display_name, read_json
from piat_jax.analysis.svg import Figures, file_name
from piat_jax.analysis.table import MISSING
from piat_jax.analysis.tables import NORMS_OF_AA, attack_name, attack_names, worst_class_table

MOST_SHOWN, MOST_MATRICES = 6, 4
"""Maximum number of settings with confusion matrices, and of matrices for each."""
MOST_GRIDS, MOST_ATTACKS = 4, 2
"""Maximum number of settings with images, and of attacks for each."""
MOST_ROWS = 200
"""Maximum number of checkpoints in the table of examples that AutoAttack broke."""


def classes(runs: Sequence[RunResults], groups: Sequence[Group]) -> list[Markup]:
    """The worst class, and each class's accuracy under each attack."""
    content: list[Markup] = []
    if found := worst_class_table(runs):
        content += [tag("h3", "The worst class"), table(found)]
    for attack, name in attack_names(runs).items():
        if rows := list(_class_rows(groups, attack)):
            names = rows[0][1]
            shown = list(range(len(names)))
            if len(names) > charts.MOST_CLASSES:
                known = [[101.0 if value is None else value for value in values] for _, _, values in rows]
                shown = np.argsort(np.mean(known, axis=0), kind="stable")[: charts.MOST_CLASSES].tolist()
            cells = [[label, *(_percent(values[i]) for i in shown)] for label, _, values in rows]
            content.append(tag("h3", f"{name}: accuracy of each class (%)"))
            content.append(grid(["Method", *(names[i] for i in shown)], cells))
            if len(shown) < len(names):
                content.append(note(f"The {len(shown)} lowest of {len(names)} classes; classes.csv has all."))
    return content


def _class_rows(groups: Sequence[Group], attack: str) -> Iterator[tuple[str, tuple[str, ...], list[float | None]]]:
    """Name, classes and accuracies (%, mean over seeds) of the groups with the same classes as the first."""
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


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def read_predictions(run: RunResults, checkpoint: str, attack: str) -> Predictions | None:
    """Read a checkpoint's predictions under an attack; None if they do not exist or belong to another evaluation.

    Raises:
      InputError: the file cannot be read.
    """
    point = run.checkpoints.get(checkpoint)
    path = path_of(run.folder, checkpoint, attack)
    if point is None or attack not in point.accuracy or not path.exists():
        return None
    found = Predictions.load(path)
    accuracy = float((found.predicted == found.labels).mean()) if len(found.labels) else 0.0
    return found if abs(accuracy - point.accuracy[attack]) < 1e-6 else None


def _point_of(group: Group, attack: str) -> tuple[str, list[Predictions]]:
    """The checkpoint of a group for which every seed has predictions, and these predictions."""
    for name in CHECKPOINTS:
        found = [read_predictions(run, name, attack) for run in group.runs]
        if all(found):
            return name, [each for each in found if each]
    return "", []


def matrices(groups: Sequence[Group], figures: Figures) -> list[Markup]:
    """Confusion matrices of the first settings; for many classes the most frequent mistakes instead."""
    content: list[Markup] = []
    for number, group in enumerate(groups[:MOST_SHOWN]):
        drawn = []
        for attack, title in attack_names(group.runs).items():
            name, found = _point_of(group, attack)
            names = group.runs[0].class_names
            if not found or len(drawn) >= MOST_MATRICES or any(run.class_names != names for run in group.runs):
                continue
            labels, predicted = (
                np.concatenate([getattr(each, kind) for each in found]) for kind in ("labels", "predicted")
            )
            finite = predicted >= 0
            matrix = charts.confusion_matrix(labels[finite].astype(int), predicted[finite].astype(int), names)
            seeds = f" over {len(found)} seeds" if len(found) > 1 else ""
            caption = (
                f"{group.name}, {name} checkpoint, {title}: {100 * matrix.accuracy:.1f} % of {len(labels)} "
                f"predictions{seeds} are correct."
            )
            if not finite.all():
                caption += f" {int((~finite).sum())} without finite logits are left out."
            if len(names) <= charts.MOST_CLASSES:
                key = f"confusion_{number}_{file_name(attack)}"
                drawn.append(figures.add(key, charts.draw_matrix(matrix), caption))
            else:
                wrong = grid(("True", "Predicted", "Examples"), charts.mistakes(matrix), labels=2)
                drawn.append(tag("div", note(caption), wrong))
        if drawn:
            content += [tag("h3", f"{group.name}: confusion of classes"), tag("div", *drawn, class_="figures small")]
    if content:
        many = f" At most the first {MOST_SHOWN} of {len(groups)} settings." if len(groups) > MOST_SHOWN else ""
        content.append(
            note(
                "Rows: the true class; numbers: percent of its examples. Correct predictions are on the "
                f"diagonal.{many}"
            )
        )
    return content


def broken(groups: Sequence[Group]) -> list[Markup]:
    """How many examples each member of AutoAttack broke, of those that earlier members had left."""
    rows: list[tuple[str, int, str, Mapping[str, Any]]] = []
    for run in [run for group in groups for run in group.runs]:
        for checkpoint in CHECKPOINTS:
            path = run.folder / "robustness" / f"{checkpoint}-aa" / "result.json"
            if checkpoint in run.checkpoints and "aa" in run.checkpoints[checkpoint].accuracy and path.exists():
                rows.append((display_name(run.method), run.seed, checkpoint, read_json(path)))
    rows = [row for row in rows if row[-1].keys() >= {"broken", "num_examples", "clean_accuracy", "robust_accuracy"}]
    members = list(dict.fromkeys(name for row in rows for name in row[-1]["broken"]))
    if not rows:
        return []
    cells = [
        (
            name,
            seed,
            checkpoint,
            found["num_examples"],
            round(found["num_examples"] * (1 - found["clean_accuracy"])),
            *(found["broken"].get(member, MISSING) for member in members),
            f"{100 * found['robust_accuracy']:.2f}",
        )
        for name, seed, checkpoint, found in rows[:MOST_ROWS]
    ]
    heads = ("Method", "Seed", "Checkpoint", "Examples", "Wrong when clean", *members, "Robust (%)")
    how = "Attacks run from left to right, each on the examples still left: a small number says little of an attack."
    return [grid(heads, cells), note(how)]


def grids(groups: Sequence[Group], figures: Figures) -> list[Markup]:
    """Images of the first settings: clean, adversarial, and their difference."""
    content: list[Markup] = []
    having = (group for group in groups if next(_with_images(group.runs[0]), None))
    first = list(islice(having, MOST_GRIDS + 1))
    for number, group in enumerate(first[:MOST_GRIDS]):
        run = group.runs[0]
        content.append(tag("h3", group.name))
        for attack, point, found in islice(_with_images(run), MOST_ATTACKS):
            eps = run.settings.get("eps")
            known = run.settings.get("norm") == "linf" and isinstance(eps, float) and attack not in NORMS_OF_AA
            labels, predicted = (
                [_name(run.class_names, label) for label in each[found.indices]]
                for each in (found.labels, found.predicted)
            )
            figure = draw_grid(
                found.clean, found.attacked, eps=eps if known else None, true=labels, predicted_attacked=predicted
            )
            held = int((found.predicted == found.labels)[found.indices].sum())
            caption = (
                f"{attack_name(attack)} on {run.folder.name}, {point} checkpoint: {len(found.indices) - held} examples "
                f"that were broken, then {held} that held. Above: the true class, and that predicted under attack. "
                f"Difference: {'black and white are -eps and eps' if known else 'scaled to its largest value'}."
            )
            if attack.startswith("aa"):
                caption += " For examples that held, AutoAttack keeps the clean image."
            content.append(figures.add(f"images_{number}_{file_name(attack)}", figure, caption, kind="wide"))
    if len(first) > MOST_GRIDS:
        content.append(note(f"Images of the first {MOST_GRIDS} settings, from the first seed of each."))
    return content


def _with_images(run: RunResults) -> Iterator[tuple[str, str, Predictions]]:
    """The attacks with stored images, the strongest first, with their checkpoints."""
    for attack in reversed(attack_names([run])):
        for name in CHECKPOINTS:
            found = read_predictions(run, name, attack)
            if found and len(found.indices):
                yield attack, name, found
                break


def _name(names: Sequence[str], label: int) -> str:
    return "not finite" if label < 0 else names[label] if label < len(names) else str(label)
