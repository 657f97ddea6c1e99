"""Figures of accuracy over training, for print."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from piat_jax.analysis.runs import Group, NormCurve, RunResults, group_runs
from piat_jax.analysis.tables import NORM_NAMES, attack_name
from piat_jax.core.checks import InputError, check_choice
from piat_jax.core.files import expanded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow, which is too light for a line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MOST_LINES = 2 * len(COLORS)
"""Number of distinguishable lines in one panel: the palette twice, with different dashes."""
MARKERS = "os^Dv<>"
WIDTH = 3.5  # inches, a column of a two-column paper
SUFFIXES = (".png", ".svg", ".pdf")
TRAIN_KEY = "train_adversarial_accuracy"
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Curve:
    """Percent over epochs: the mean over seeds and their range."""

    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve(group: Group, key: str) -> Curve | None:
    """The metric `key` at the epochs for which every seed has it; None if there is no such epoch."""
    series = [run.series(key) for run in group.runs]
    epochs = [set(found.tolist()) for found, _ in series]
    common = np.array(sorted(set.intersection(*epochs)), int)
    if not len(common):
        return None
    values = 100 * np.stack([found[np.isin(at, common)] for at, found in series])
    return Curve(common, values.mean(0), values.min(0), values.max(0))


def robust_accuracy_figure(
    runs: Sequence[RunResults], path: str | os.PathLike[str], *, key: str = "test_pgd20", training: bool = False
) -> "Figure":
    """Draw a test accuracy over the epochs, one line per method, and save it, as in the PIAT paper's Fig. 1.

    Several seeds become their mean and a band from lowest to highest, at their common epochs. A marker shows a line's
    highest point. Methods without the metric are left out.

    Args:
      runs: from load_run.
      path: .png (200 dpi), .svg or .pdf.
      key: the metric.
      training: add a panel with the accuracy under the training attack: if it still rises while the test accuracy
        falls, the run overfits robustly.

    Returns:
      The figure.

    Raises:
      InputError: no run has the metric, or the path has another suffix.
    """
    path = expanded(path)
    check_choice("suffix", path.suffix, SUFFIXES)
    figure = draw(runs, key=key, training=training)
    save(figure, path)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write the figure; PNG at 200 dpi."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=200)


def draw(runs: Sequence[RunResults], *, key: str = "test_pgd20", training: bool = False) -> "Figure":
    """The figure of `robust_accuracy_figure`, without saving it."""
    groups = group_runs(runs)
    return draw_groups(groups, names_of(groups), key=key, training=training)


def draw_groups(groups: Sequence[Group], names: Sequence[str], *, key: str, training: bool = False) -> "Figure":
    """The same with a name for each group, whose runs differ only in their seeds.

    Raises:
      InputError: no group has the metric.
    """
    tests = [curve(group, key) for group in groups]
    if not any(tests):
        runs = [run for group in groups for run in group.runs]
        found = sorted({name for run in runs for entry in run.metrics for name in entry if name.startswith("test_")})
        raise InputError(f"no run has {key} to draw; the metrics have {', '.join(found) or 'no test accuracy'}")
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    content = [(tests, f"{attack_name(key.removeprefix('test_'))} accuracy (%)")]
    trains = [curve(group, TRAIN_KEY) if test else None for group, test in zip(groups, tests)]
    if training and any(trains):
        content.append((trains, "Training accuracy\nunder attack (%)"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.8 + 1.6 * len(content)), layout="constrained")
        panels = figure.subplots(len(content), 1, sharex=True, squeeze=False)[:, 0]
        for index, (axes, (curves, label)) in enumerate(zip(panels, content)):
            axes.set_ylabel(label)
            tidy(axes)
            axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
            plot(axes, curves, names, test=index == 0)
        last = max(int(drawn.epochs[-1]) for curves, _ in content for drawn in curves if drawn)
        panels[-1].set_xlabel("Epoch")
        panels[-1].set_xlim(0, last)
        figure.draw_without_rendering()
        for axes, (curves, _) in zip(panels, content):
            _label_lines(axes, curves, names, figure)
    return figure


def draw_norms(runs: Sequence[RunResults], attack: str, *, checkpoint: str = "best") -> "Figure":
    """Draw accuracy as a function of the radius, from a minimum-norm attack's norms; one line per method.

    Several seeds become their mean and a band from lowest to highest. Methods without the attack are left out.

    Args:
      runs: from load_run.
      attack: such as "fmn100".
      checkpoint: "best" or "final".

    Raises:
      InputError: no run has the attack, or runs have it in different norms.
    """
    groups = group_runs(runs)
    points = [[run.checkpoints.get(checkpoint) for run in group.runs] for group in groups]
    found = [
        [point.minimum_norm[attack] for point in group if point and attack in point.minimum_norm] for group in points
    ]
    norms = sorted({each.norm for curves in found for each in curves})
    if len(norms) != 1:
        raise InputError(f"{attack} was run on the {checkpoint} checkpoints in {' and '.join(norms) or 'no norm'}")
    import matplotlib
    from matplotlib.figure import Figure

    curves = [_norm_curve(each) if each else None for each in found]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.set_ylabel(f"{attack_name(attack)} accuracy (%)")
        axes.set_xlabel(f"{NORM_NAMES.get(norms[0], norms[0])} radius, {checkpoint} checkpoint")
        tidy(axes)
        plot(axes, curves, names_of(groups), test=False, style="-")
        axes.set_xlim(0, max(_reach(drawn) for drawn in curves if drawn) or 1.0)
        axes.set_ylim(0, 100)
        axes.legend(frameon=False, fontsize=6.5)
    return figure


def _reach(drawn: Curve) -> float:
    """The radius at which a twentieth of the clean accuracy is left, or the last; few images are far beyond it."""
    low = drawn.mean <= 0.05 * drawn.mean[0]
    return float(drawn.epochs[np.argmax(low) if low.any() else -1])


def _norm_curve(found: Sequence[NormCurve]) -> Curve:
    """Accuracies of several seeds at the radii of the longest curve; shorter ones are extended by their last value."""
    radii = np.array(max(found, key=lambda each: each.eps[-1]).eps)
    values = 100 * np.stack([np.interp(radii, each.eps, each.accuracy) for each in found])
    return Curve(radii, values.mean(0), values.min(0), values.max(0))


def tidy(axes: "Axes") -> None:
    """Put a grid behind the lines, and remove the upper and right frame."""
    axes.grid(True, color="#E0E0E0", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain(text: str) -> str:
    r"""Escape text so that matplotlib does not read a dollar as a formula.

    >>> print(plain("a$b$"))
    a\$b\$
    """
    return text.replace("$", r"\$")


def shortened(name: str, most: int = 14) -> str:
    """Shorten a class's name to fit next to a row or above an image.

    >>> shortened("red admiral, Vanessa atalanta")
    'red admiral'
    """
    name = name.partition(",")[0]
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def plot(axes: "Axes", curves: Sequence[Curve | None], names: Sequence[str], *, test: bool, style: str = "--") -> None:
    """Draw the line of each curve, and a band where seeds differ.

    Args:
      axes: to draw into.
      curves: of each name, or None.
      names: of the lines.
      test: mark each line's highest point, and draw the palette's lines solid.
      style: of the lines if `test` is false.
    """
    for index, (drawn, name) in enumerate(zip(curves, names)):
        if drawn is None:
            continue
        color = COLORS[index % len(COLORS)]
        # After the palette's colours, a second pass is dashed differently; all lines of the training panel are dashed.
        dashes = "-" if index < len(COLORS) else "-."
        axes.plot(
            drawn.epochs,
            drawn.mean,
            dashes if test or style == "-" else style,
            color=color,
            linewidth=1.2,
            label=name,
            zorder=3,
        )
        if (drawn.high > drawn.low).any():
            axes.fill_between(drawn.epochs, drawn.low, drawn.high, color=color, alpha=0.18, linewidth=0)
        if test:
            at = int(np.argmax(drawn.mean))
            axes.plot(
                drawn.epochs[at : at + 1],
                drawn.mean[at : at + 1],
                MARKERS[index % len(MARKERS)],
                color=color,
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=4,
                clip_on=False,
            )


def _label_lines(axes: "Axes", curves: Sequence[Curve | None], names: Sequence[str], figure: "Figure") -> None:
    """Write each name to the right of its line's end, moved apart to avoid overlaps."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    line_height = 9.5 / 72 / (axes.get_position().height * figure.get_figheight())  # as a fraction of the axes
    ends = [(i, (drawn.mean[-1] - bottom) / (top - bottom)) for i, drawn in enumerate(curves) if drawn]
    order = sorted(ends, key=lambda end: end[1])
    heights = spread([height for _, height in order], line_height)
    for (index, _), height in zip(order, heights):
        axes.annotate(
            names[index],
            (1, height),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=COLORS[index % len(COLORS)],
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights `gap` apart: touching ones form a block around their mean, kept in [0, 1].

    >>> [round(height, 2) for height in spread([0.1, 0.5, 0.52, 0.99, 1.0], 0.1)]
    [0.1, 0.46, 0.56, 0.9, 1.0]
    """
    blocks: list[tuple[float, int]] = []  # centre and number of labels
    for height in heights:
        centre, count = height, 1
        while blocks and blocks[-1][0] + gap * blocks[-1][1] / 2 > centre - gap * count / 2:
            previous, members = blocks.pop()
            centre = (previous * members + centre * count) / (members + count)
            count += members
            centre = min(max(centre, gap * (count - 1) / 2), 1 - gap * (count - 1) / 2)
        blocks.append((centre, count))
    return [centre + gap * (i - (count - 1) / 2) for centre, count in blocks for i in range(count)]


def names_of(groups: Sequence[Group]) -> list[str]:
    """Method names, escaped for matplotlib, with data set and model if these differ."""
    several = [len({getattr(group, field) for group in groups}) > 1 for field in ("dataset", "model")]
    return [
        plain(", ".join([group.name, *(text for text, on in zip((group.dataset, group.model), several) if on)]))
        for group in groups
    ]
