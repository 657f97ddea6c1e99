"""The figures of a report: metrics over the epochs, accuracy as a function of the radius, confusion matrices."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from piat_jax.analysis.curves import COLORS, MOST_LINES, STYLE, Curve, names_of, plain, plot, shortened, tidy
from piat_jax.analysis.runs import Group, RunResults
from piat_jax.analysis.tables import attack_name
from piat_jax.core.checks import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (4.3, 2.6)  # inches
DEFAULT_SCORES = ("test_clean", "train_adversarial_accuracy", "train_loss", "learning_rate")
"""The metrics that are drawn for every run, besides the accuracy that chose the best epoch."""
TITLES = {
    "train_loss": "Training loss",
    "train_adversarial_accuracy": "Training accuracy under attack",
    "train_clean_accuracy": "Training accuracy",
    "learning_rate": "Learning rate",
    "images_per_second": "Images per second",
    "peak_memory_bytes": "Peak memory (bytes)",
}
MOST_CLASSES = 20
"""Maximum number of classes in a drawn confusion matrix."""


class Score(NamedTuple):
    """A metric and how to draw it."""

    key: str
    title: str
    scale: float = 1.0
    title_of_axis: str = ""

    @property
    def label(self) -> str:
        """The axis label."""
        return self.title_of_axis or self.title


def score_of(key: str) -> Score:
    """How to draw a metric: fractions are shown in percent.

    >>> score_of("test_pgd20").label, score_of("train_loss").label, score_of("test_clean").title
    ('PGD-20 accuracy (%)', 'Training loss', 'Clean accuracy')
    """
    kind, _, attack = key.partition("_")
    title = TITLES.get(key, "")
    if kind in ("test", "validation") and attack:
        title = f"{attack_name(attack)} accuracy"
    title = title or key.replace("_", " ").capitalize()
    percent = kind in ("test", "validation") or "accuracy" in key
    return Score(key, title, 100.0, f"{title} (%)") if percent else Score(key, title)


def series_of(group: Group, read: Callable[[RunResults], tuple[np.ndarray, np.ndarray]], scale: float) -> Curve | None:
    """The mean and range over seeds at their common epochs; None if there are none, or no finite value."""
    series = [read(run) for run in group.runs]
    common = np.array(sorted(set.intersection(*(set(found.tolist()) for found, _ in series))), int)
    if not len(common):
        return None
    values = scale * np.stack([found[np.isin(at, common)] for at, found in series])
    if not np.isfinite(values).any():
        return None
    return Curve(common, values.mean(0), values.min(0), values.max(0))


def interpolation_weights(run: RunResults) -> tuple[np.ndarray, np.ndarray]:
    """The epochs of a run with PIAT, and the weight of the past in each; empty for other runs.

    `lambda_n = (a n + b) / (c n + d)`, computed from the config, since it is not recorded.
    """
    given = [run.fields.get(f"piat.{name}") for name in "abcd"]
    if "piat" not in run.method.split("+") or None in given:
        return np.zeros(0, int), np.zeros(0)
    epochs = np.array([entry["epoch"] for entry in run.metrics], int)
    rounds = epochs - 1 + run.fields.get("piat.first_epoch", 1)
    a, b, c, d = given
    return epochs, (a * rounds + b) / (c * rounds + d)


def draw_score(groups: Sequence[Group], score: Score) -> "Figure | None":
    """Draw a metric over the epochs, one line for each of the first `MOST_LINES` groups; None if none has it."""
    groups = groups[:MOST_LINES]
    return draw_lines(
        groups, [series_of(group, lambda run: run.series(score.key), score.scale) for group in groups], score.label
    )


def draw_weights(groups: Sequence[Group]) -> "Figure | None":
    """Draw PIAT's weight of the past over the epochs for the first groups; None if none has PIAT."""
    groups = groups[:MOST_LINES]
    return draw_lines(
        groups, [series_of(group, interpolation_weights, 1.0) for group in groups], "Weight of the past λ"
    )


def draw_lines(
    groups: Sequence[Group], curves: Sequence[Curve | None], label: str, along: str = "Epoch"
) -> "Figure | None":
    """Draw one line per group, with a band from the lowest seed to the highest.

    Args:
      groups: the lines' groups, at most `MOST_LINES`; a group has the same colour in every figure of a report.
      curves: of each group, or None.
      label: of the vertical axis.
      along: label of the horizontal axis.

    Returns:
      The figure; None if there is no curve.
    """
    if not any(curves):
        return None
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = names_of(groups)
    drawn = sum(each is not None for each in curves)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.16 * -(-drawn // 2)), layout="constrained")
        axes = figure.subplots()
        axes.set_ylabel(label)
        axes.set_xlabel(along)
        tidy(axes)
        plot(axes, curves, names, test=False, style="-")
        last = max(each.epochs[-1] for each in curves if each)
        first = min(each.epochs[0] for each in curves if each)
        if along == "Epoch":
            axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        if first == last:  # a single point is not a line
            for line in axes.lines:
                line.set_marker("o")
        else:
            axes.set_xlim(first, last)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


class Matrix(NamedTuple):
    """How often each class was predicted as each class."""

    counts: np.ndarray  # [K, K] integers, by the true class, then the predicted one
    names: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """The fraction on the diagonal."""
        return float(np.trace(self.counts) / max(self.counts.sum(), 1))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Matrix:
    """Count predictions by true and predicted class.

    Args:
      labels: `[N]` true classes.
      predicted: `[N]` predicted classes.
      names: of the K classes.

    Raises:
      InputError: a class is not among the K.

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), ["cat", "dog"]).counts.tolist()
    [[1, 1], [0, 1]]
    """
    counts = np.zeros((len(names), len(names)), int)
    for what, values in (("labels", labels), ("predicted", predicted)):
        if len(values) and not 0 <= values.min() <= values.max() < len(names):
            raise InputError(f"{what} has classes {values.min()} to {values.max()}, but there are {len(names)} names")
    np.add.at(counts, (labels, predicted), 1)
    return Matrix(counts, tuple(names))


def mistakes(matrix: Matrix, most: int = 10) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: true class, predicted class, number of examples.

    >>> mistakes(Matrix(np.array([[5, 2], [0, 1]]), ("cat", "dog")))
    [('cat', 'dog', 2)]
    """
    wrong = matrix.counts * (1 - np.eye(len(matrix.names), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [tuple(int(i) for i in np.unravel_index(index, wrong.shape)) for index in order]
    return [(matrix.names[i], matrix.names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def draw_matrix(matrix: Matrix) -> "Figure":
    """Draw a confusion matrix: percent of each true class (rows) that are predicted as each class (columns)."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    classes = len(matrix.names)
    shares = matrix.counts / np.maximum(matrix.counts.sum(axis=1, keepdims=True), 1)
    side = max(2.6, 0.9 + 0.24 * classes)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        for row, column in zip(*np.nonzero(matrix.counts)):
            color, share = COLORS[0 if row == column else 1], shares[row, column]
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, alpha=0.08 + 0.72 * share, linewidth=0)
            )
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5)
        names = [plain(shortened(name)) for name in matrix.names]
        axes.set_xticks(range(classes), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(classes), names)
        axes.set_xlim(-0.5, classes - 0.5)
        axes.set_ylim(classes - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.tick_params(length=0)
        axes.set_xlabel("Predicted")
        axes.set_ylabel("True")
    return figure
