"""Fig. 8: the loss of PGD-AT's and PIAT's final models around their weights (Eq. 13), under PGD-20."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import Claim, interval, verdict
from experiments.items import run_folder
from experiments.results import Entry, Result
from experiments.trained import load_final
from piat_jax.analysis.curves import STYLE, WIDTH
from piat_jax.analysis.landscape import loss_landscape, random_directions
from piat_jax.cli import build
from piat_jax.core.rng import named_key
from piat_jax.data.augment import to_float

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS, IMAGES = 15, 100  # of either coordinate; of the test set
ATTACK = "pgd20"


def run(result: Result, folder: Path) -> dict[str, Any]:
    """The grids of every run, and by how much the loss fluctuates over them."""
    coordinates = np.linspace(-1, 1, POINTS)
    grids = {}
    for setting in result.settings:
        for entry in result.entries:
            if entry.setting == setting:
                found = [_grid(run_folder(folder, setting, entry.row, seed), coordinates) for seed in result.seeds]
                grids[f"{setting.name}/{entry.row.name}"] = [_rows(grid) for grid in found]
    findings = [_finding(result, setting.name, grids) for setting in result.settings]
    return {
        "coordinates": coordinates.tolist(),
        "grids": grids,
        "findings": [
            f"Final checkpoints; mean cross-entropy of the first {IMAGES} test images under {ATTACK}, run anew "
            f"at each of {POINTS} x {POINTS} points; directions are those of the seed, the same for both methods.",
            *findings,
        ],
    }


def _grid(folder: Path, coordinates: np.ndarray) -> np.ndarray:
    """The landscape of the final checkpoint of a run."""
    config, net, variables, test = load_final(folder)
    images = to_float(jnp.asarray(test.images[:IMAGES]))
    key = jax.random.key(config.seed)
    return loss_landscape(
        net,
        variables,
        images,
        jnp.asarray(test.labels[:IMAGES]),
        directions=random_directions(named_key(key, "landscape"), variables.params),
        coordinates=coordinates,
        attack=build.evaluation_attack(config, ATTACK),  # type: ignore[arg-type]
        key=named_key(key, "evaluate"),
    )


def _rows(grid: np.ndarray) -> list[str]:
    """A line of text for each row, which is what JSON keeps readable."""
    return [" ".join(f"{value:.5g}" for value in row) for row in grid]


def grid_of(rows: list[str]) -> np.ndarray:
    """The inverse of `_rows`."""
    return np.array([row.split() for row in rows], float)


def fluctuation(grids: np.ndarray) -> np.ndarray:
    """The standard deviation of the loss over each grid `[S, G, G]`.

    >>> float(fluctuation(np.array([[[1.0, 3.0], [3.0, 1.0]]]))[0])
    1.0
    """
    return grids.std(axis=(1, 2))


def _finding(result: Result, setting: str, grids: dict[str, Any]) -> str:
    found = {
        name: fluctuation(np.array([grid_of(rows) for rows in grids[f"{setting}/{name}"]]))
        for name in ("PGD-AT", "PIAT")
    }
    difference = interval(found["PIAT"] - found["PGD-AT"])
    claim = Claim("PIAT's landscape fluctuates less", "PIAT", "PGD-AT", "fluctuation", "lower")
    means = ", ".join(f"{name} {values.mean():.4f}" for name, values in found.items())
    return (
        f"{setting}: standard deviation of the loss over the square: {means}; PIAT minus PGD-AT {difference.mean:.4f} "
        f"[{difference.low:.4f}, {difference.high:.4f}] over {len(result.seeds)} seeds. {claim.text}: "
        f"{verdict(claim, difference)}."
    )


def draw(result: Result) -> dict[str, "Figure"]:
    """By how much the loss changes from that at the weights: the surfaces of the first seed, on one scale."""
    import matplotlib
    from matplotlib.figure import Figure

    axis = np.array(result.study["coordinates"])
    figures = {}
    for setting in result.settings:
        entries: list[Entry] = [entry for entry in result.entries if entry.setting == setting]
        grids = [grid_of(result.study["grids"][f"{setting.name}/{entry.row.name}"][0]) for entry in entries]
        middle = len(axis) // 2
        at_weights = [grid[middle, middle] for grid in grids]
        grids = [grid - value for grid, value in zip(grids, at_weights)]
        low, high = min(grid.min() for grid in grids), max(grid.max() for grid in grids)
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(2 * WIDTH, 2.9), layout="constrained")
            for index, (entry, grid) in enumerate(zip(entries, grids), 1):
                axes: Any = figure.add_subplot(1, len(entries), index, projection="3d")
                m1, m2 = np.meshgrid(axis, axis, indexing="ij")
                # Lightness grows with height: legible in grey and to the colour-blind.
                axes.plot_surface(
                    m1, m2, grid, cmap="cividis", vmin=low, vmax=high, linewidth=0.2, edgecolor="#00000040"
                )
                axes.set_zlim(low, high)
                axes.set_title(f"{entry.row.name}, {at_weights[index - 1]:.2f} at the weights", fontsize=8)
                axes.set_xlabel("$m_1$", labelpad=-6)
                axes.set_ylabel("$m_2$", labelpad=-6)
                axes.set_zlabel("change of the loss", labelpad=-1, fontsize=7)
                axes.set_xticks([-1, 0, 1])
                axes.set_yticks([-1, 0, 1])
                axes.tick_params(labelsize=6, pad=-2)
                axes.view_init(elev=25, azim=-60)
        figures[f"{result.item.key}_{setting.name}"] = figure
    return figures
