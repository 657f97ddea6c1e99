"""Fig. 8: the loss of PGD-AT's and PIAT's final models around their weights (Eq. 13), under PGD-20."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine.claims import Claim, interval, verdict
from experiments.engine.items import Setting
from experiments.engine.results import Result
from experiments.engine.trained import load_final
from piat_jax.analysis.curves import STYLE, WIDTH
from piat_jax.analysis.landscape import loss_landscape, random_directions
from piat_jax.core.pixels import to_float
from piat_jax.core.rng import named_key
from piat_jax.experiment.evaluation import evaluation_attack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS, IMAGES = 15, 100  # of either coordinate; of the test set
ATTACK = "pgd20"


def run(result: Result) -> dict[str, Any]:
    """The grids of every run, and by how much the loss fluctuates over them."""
    coordinates = np.linspace(-1, 1, POINTS)
    kept, findings = {}, []
    for setting in result.settings:
        grids = {
            entry.row.name: {run.seed: _grid(run.folder, coordinates) for run in entry.runs}
            for entry in result.ran(setting)
        }
        kept |= {f"{setting.name}/{name}": [_rows(grid) for grid in found.values()] for name, found in grids.items()}
        pgd_at, piat = (grids.get(name, {}) for name in ("PGD-AT", "PIAT"))
        if both := sorted(pgd_at.keys() & piat.keys()):
            deviations = (fluctuation(np.array([found[seed] for seed in both])) for found in (pgd_at, piat))
            findings.append(_finding(setting.name, *deviations))
    return {
        "coordinates": coordinates.tolist(),
        "grids": kept,
        "findings": [
            f"Final checkpoints; mean cross-entropy of the first {IMAGES} test images under {ATTACK}, run again "
            f"at each of {POINTS} x {POINTS} points; directions are those of the seed, the same for both methods.",
            *findings,
        ],
    }


def _grid(folder: Path, coordinates: np.ndarray) -> np.ndarray:
    """The landscape of the final checkpoint of a run."""
    experiment, net, variables, test = load_final(folder)
    images = to_float(jnp.asarray(test.images[:IMAGES]))
    key = jax.random.key(experiment.seed)
    return loss_landscape(
        net,
        variables,
        images,
        jnp.asarray(test.labels[:IMAGES]),
        directions=random_directions(named_key(key, "landscape"), variables.params),
        coordinates=coordinates,
        attack=evaluation_attack(experiment, ATTACK),  # type: ignore[arg-type]
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


def _finding(setting: str, pgd_at: np.ndarray, piat: np.ndarray) -> str:
    """The paper's claim, from the fluctuations of equal seeds."""
    difference = interval(piat - pgd_at)
    claim = Claim("PIAT's landscape fluctuates less", "PIAT", "PGD-AT", "fluctuation", "lower")
    return (
        f"{setting}: standard deviation of the loss over the square: PGD-AT {pgd_at.mean():.4f}, "
        f"PIAT {piat.mean():.4f}; PIAT minus PGD-AT {difference.text(4)}, "
        f"seeds: {len(piat)}. {claim.text}: "
        f"{verdict(claim, difference)}."
    )


def draw(result: Result, setting: Setting) -> "Figure":
    """By how much the loss changes from that at the weights: the surfaces of the first seed, on one scale."""
    import matplotlib
    from matplotlib.figure import Figure

    axis, entries = np.array(result.study["coordinates"]), result.ran(setting)
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
            axes.plot_surface(m1, m2, grid, cmap="cividis", vmin=low, vmax=high, linewidth=0.2, edgecolor="#00000040")
            axes.set_zlim(low, high)
            axes.set_title(f"{entry.row.name}, {at_weights[index - 1]:.2f} at the weights", fontsize=8)
            axes.set_xlabel("$m_1$", labelpad=-6)
            axes.set_ylabel("$m_2$", labelpad=-6)
            axes.set_zlabel("change of the loss", labelpad=-1, fontsize=7)
            axes.set_xticks([-1, 0, 1])
            axes.set_yticks([-1, 0, 1])
            axes.tick_params(labelsize=6, pad=-2)
            axes.view_init(elev=25, azim=-60)
    return figure
