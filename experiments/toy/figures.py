"""The toy study drawn for print: the data, the curves, the boundaries and how each seed oscillates."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.engine.claims import interval
from experiments.toy.study import (
    EXTENT,
    METHODS,
    History,
    Measures,
    Settings,
    drop_epochs,
    margins,
    prepare,
)
from piat_jax.analysis.curves import COLORS, STYLE, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = {"pgd_at": (COLORS[1], "--"), "piat": (COLORS[0], "-"), "alp": (COLORS[4], "--"), "nmse": (COLORS[2], "-")}
SIDES = (("pgd_at", "piat"), ("alp", "nmse"))
CLASS_COLORS, CLASS_MARKERS = (COLORS[1], COLORS[0]), "o^"
TINTS = ("#F7DCC8", "#CFE3F1")  # of the two classes' regions
FAR = 1e9  # beyond any margin


def draw(histories: dict[str, History], measures: dict[str, Measures], settings: Settings) -> dict[str, "Figure"]:
    """Every figure by name. Single runs are of the seed whose largest drop under PGD-AT is the median."""
    import matplotlib

    drops = measures["pgd_at"].drop
    seed = int(np.argsort(drops, kind="stable")[len(drops) // 2])
    with matplotlib.rc_context(STYLE):
        return {
            "data": draw_data(settings, seed),
            "curves": draw_curves(histories, settings, seed),
            "boundary": draw_boundary(histories["pgd_at"], settings, seed),
            "overlay": draw_overlay(histories, settings, seed),
            "oscillation": draw_oscillation(measures),
        }


def draw_data(settings: Settings, seed: int) -> "Figure":
    """The training points in the plane and in space (the paper's Fig. 2)."""
    from matplotlib.figure import Figure

    points, labels = _points(settings, seed, "train")
    figure = Figure(figsize=(2 * WIDTH, 3.1), layout="constrained")
    flat = figure.add_subplot(1, 2, 1)
    space: Any = figure.add_subplot(1, 2, 2, projection="3d")
    for label, (color, marker) in enumerate(zip(CLASS_COLORS, CLASS_MARKERS)):
        own = points[labels == label]
        look = {"color": color, "marker": marker, "s": 7, "linewidths": 0, "alpha": 0.75}
        flat.scatter(own[:, 0], own[:, 1], label=f"class {label + 1}", **look)
        space.scatter(own[:, 0], own[:, 1], own[:, 2], **look)
    _frame(flat)
    space.set(xlabel="$x_1$", ylabel="$x_2$")
    space.set_zlabel("$x_3$")
    space.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1], zticks=[settings.low, settings.high])
    space.tick_params(pad=0)
    space.set_box_aspect((1, 1, 0.75), zoom=0.82)
    flat.legend(frameon=False, fontsize=7, loc="upper right", ncols=2, handletextpad=0.1, borderaxespad=0.1)
    return figure


def draw_curves(histories: dict[str, History], settings: Settings, seed: int) -> "Figure":
    """Clean and robust test accuracy over the epochs (the paper's Fig. 3): one seed, and the mean of all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * WIDTH, 4.3), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    epochs = np.arange(1, settings.epochs + 1)
    for column, methods in enumerate(SIDES):
        for method in methods:
            color, line = LINES[method]
            for key in ("test_clean", "test_robust"):
                values = 100 * getattr(histories[method].scores, key)
                name = METHODS[method] if key == "test_robust" else None
                panels[0, column].plot(epochs, values[seed], line, color=color, linewidth=1.0, label=name)
                bands = [interval(values[:, at]) for at in range(settings.epochs)]
                panels[1, column].plot(epochs, [band.mean for band in bands], line, color=color, linewidth=1.0)
                low, high = [band.low for band in bands], [band.high for band in bands]
                panels[1, column].fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
        panels[1, column].set_xlabel("Epoch")
        panels[0, column].legend(frameon=False, fontsize=7, loc="lower right", ncols=2)
    robust = min(float(history.scores.test_robust[seed, settings.warmup :].min()) for history in histories.values())
    clean = max(float(history.scores.test_clean.max()) for history in histories.values())
    several = f"mean of {settings.seeds} seeds and its 95 % interval"
    for axes, text in zip(panels.flat, [f"seed {seed}"] * 2 + [several] * 2):
        axes.set_ylim(max(100 * robust - 5, 0), min(100 * clean + 1.5, 100))
        axes.set_title(text, fontsize=7.5, loc="left", color="#404040")
        axes.grid(True, color="#E0E0E0", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, settings.epochs)
    for axes in panels[:, 0]:
        axes.set_ylabel("Test accuracy (%)")
    for axes in panels.flat:
        for key, text in (("test_clean", "clean"), ("test_robust", "robust")):
            height = 100 * float(getattr(histories["piat"].scores, key)[:, -1].mean())
            axes.annotate(
                text, (1, height), (2, 0), ("axes fraction", "data"), "offset points", fontsize=7, va="center"
            )
    return figure


def draw_boundary(history: History, settings: Settings, seed: int) -> "Figure":
    """PGD-AT's boundary before and after the epoch with the largest drop (the paper's Fig. 4).

    Test points that lie in another class's region after it are circled.
    """
    from matplotlib.figure import Figure

    epoch = int(drop_epochs(history.scores, settings.warmup)[seed])
    figure = Figure(figsize=(2 * WIDTH, 3.85), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    points, labels = _points(settings, seed, "test")
    fields = [_field(history, settings, seed, at) for at in (epoch - 1, epoch)]
    rows, columns = (_cell(points[:, axis], len(fields[0])) for axis in (1, 0))
    turned = (fields[0][rows, columns] > 0) != (fields[1][rows, columns] > 0)
    for axes, field, moment, at in zip(panels, fields, ("before", "after"), (epoch - 1, epoch)):
        line = np.linspace(-EXTENT, EXTENT, len(field))
        axes.contourf(line, line, field, levels=[-FAR, 0, FAR], colors=TINTS)
        _outline(axes, line, field, colors="black", linewidths=1.0)
        for label, (color, marker) in enumerate(zip(CLASS_COLORS, CLASS_MARKERS)):
            own = labels == label
            axes.scatter(*points[own, :2].T, color=color, marker=marker, s=6, linewidths=0, alpha=0.8)
        axes.scatter(*points[turned, :2].T, s=34, facecolors="none", edgecolors="black", linewidths=0.8)
        robust = 100 * history.scores.test_robust[seed, at - 1]
        axes.set_title(f"{moment} epoch {epoch}: robust accuracy {robust:.1f} %", fontsize=8)
        _frame(axes)
    panels[1].set_ylabel("")
    return figure


def draw_overlay(histories: dict[str, History], settings: Settings, seed: int) -> "Figure":
    """Boundaries before and after the epoch with each method's largest drop, on each other (the paper's Fig. 5)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * WIDTH, 3.85), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, method in zip(panels, SIDES[0]):
        history = histories[method]
        epoch = int(drop_epochs(history.scores, settings.warmup)[seed])
        before, after = (_field(history, settings, seed, at) for at in (epoch - 1, epoch))
        line = np.linspace(-EXTENT, EXTENT, len(before))
        changed = (before > 0) != (after > 0)
        # Where the signs differ the product is negative.
        axes.contourf(line, line, before * after, levels=[-FAR, 0], colors=["#BBBBBB"])
        _outline(axes, line, before, colors=COLORS[5], linewidths=1.2, linestyles="--")
        _outline(axes, line, after, colors="black", linewidths=1.2)
        axes.plot([], [], "--", color=COLORS[5], linewidth=1.2, label=f"before epoch {epoch}")
        axes.plot([], [], "-", color="black", linewidth=1.2, label=f"after epoch {epoch}")
        axes.fill_between([], [], color="#BBBBBB", label=f"changed: {100 * changed.mean():.1f} % of the square")
        start, end = (100 * history.scores.test_robust[seed, at - 1] for at in (epoch - 1, epoch))
        axes.set_title(f"{METHODS[method]}: robust accuracy {start:.1f} to {end:.1f} %", fontsize=8)
        axes.legend(frameon=False, fontsize=7, loc="upper left")
        _frame(axes)
    panels[1].set_ylabel("")
    return figure


def draw_oscillation(measures: dict[str, Measures]) -> "Figure":
    """Each seed's deviation and largest drop under both methods of a side, joined by a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * WIDTH, 2.5), layout="constrained")
    panels = figure.subplots(1, 4)
    shown = [
        ("deviation", "Deviation of robust\naccuracy (points)"),
        ("drop", "Largest drop in robust\naccuracy (points)"),
    ]
    for axes, (methods, (key, text)) in zip(panels, [(side, what) for what in shown for side in SIDES]):
        values = np.stack([getattr(measures[method], key) for method in methods])
        axes.plot([0, 1], values, color="#B0B0B0", linewidth=0.6, zorder=1)
        for place, method in enumerate(methods):
            color = LINES[method][0]
            axes.plot(np.full(values.shape[1], place), values[place], "o^"[place], color=color, markersize=3, alpha=0.7)
            side = 0.14 * (2 * place - 1)
            axes.plot(place + side, values[place].mean(), "_", color=color, markersize=11, markeredgewidth=2)
        axes.set_xticks([0, 1], [METHODS[method] for method in methods])
        axes.set_xlim(-0.35, 1.35)
        axes.set_ylim(0, 1.08 * max(getattr(measures[method], key).max() for method in METHODS))
        axes.set_ylabel(text if methods == SIDES[0] else "")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, axis="y", color="#E0E0E0", linewidth=0.5)
        axes.set_axisbelow(True)
    return figure


def _points(settings: Settings, seed: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    points, labels = jax.device_get(getattr(prepare(jax.random.key(seed), settings=settings), part))
    return points.reshape(-1, 3), labels


def _field(history: History, settings: Settings, seed: int, epoch: int, side: int = 301) -> np.ndarray:
    """The square's margins after an epoch, `[side, side]`; the boundary is where they are 0."""
    params = jax.tree.map(lambda leaf: leaf[seed, epoch], history.params)
    return np.asarray(margins(settings, params, side))


def _cell(coordinate: np.ndarray, side: int) -> np.ndarray:
    """The grid line nearest to each coordinate."""
    return np.clip(np.rint((coordinate + EXTENT) / (2 * EXTENT) * (side - 1)).astype(int), 0, side - 1)


def _outline(axes: "Axes", line: np.ndarray, field: np.ndarray, **look: Any) -> None:
    """The boundary; a network with one answer everywhere has none."""
    if field.min() < 0 < field.max():
        axes.contour(line, line, field, levels=[0], **look)


def _frame(axes: "Axes") -> None:
    axes.set(xlabel="$x_1$", ylabel="$x_2$", xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal")
    axes.set_xticks([-1, 0, 1])
    axes.set_yticks([-1, 0, 1])
