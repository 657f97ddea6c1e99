"""Fig. 2: which share of the images entropy sets to another radius than the epoch's, and to which."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.results import Result
from piat_jax.analysis.curves import COLORS, STYLE, WIDTH
from piat_jax.analysis.runs import Run
from piat_jax.cli.run_folder import read_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWERED, RAISED = "train_radius_lowered", "train_radius_raised_"


def run(result: Result, folder: Path) -> dict[str, Any]:
    """For each epoch the radius of the scheduler, and the shares that were lowered and raised; mean over seeds."""
    found = {}
    for entry in result.entries:
        levels = sorted(read_config(entry.runs[0].folder).ecas.levels)
        shares = np.mean([shares_of(run) for run in entry.runs], axis=0)
        found[entry.setting.name] = {
            "levels": levels,
            "shares": [" ".join(f"{share:.4g}" for share in row) for row in shares],
        }
    half = {name: np.array([row.split() for row in data["shares"]], float) for name, data in found.items()}
    findings = []
    for name, shares in half.items():
        adjusted = 100 * shares.sum(1)
        middle = len(adjusted) // 2
        findings.append(
            f"{name}: entropy adjusts {adjusted[:middle].mean():.1f} % of the images in the first half of training and "
            f"{adjusted[middle:].mean():.1f} % in the second; {100 * shares[:, 0].mean():.1f} % are lowered, "
            f"{100 * shares[:, 1:].sum(1).mean():.1f} % raised, over all epochs. Mean of {len(result.seeds)} seeds."
        )
    return {"radii": found, "findings": findings}


def shares_of(run: Run) -> np.ndarray:
    """`[epochs, 1 + num_big]`: the share that was lowered, and those raised to each big radius, the smallest first."""
    raised = sorted(
        (name for name in run.metrics[0] if name.startswith(RAISED)), key=lambda name: int(name[len(RAISED) :])
    )
    return np.array([[entry[name] for name in (LOWERED, *raised)] for entry in run.metrics])


def draw(result: Result) -> dict[str, "Figure"]:
    """A bar for each epoch: below the images at the scheduler's radius, above those that entropy moved."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    figures = {}
    for name, data in result.study["radii"].items():
        levels = np.array(data["levels"])
        shares = 100 * np.array([row.split() for row in data["shares"]], float)
        epochs = np.arange(1, len(shares) + 1)
        scheduled = levels[(epochs - 1) % len(levels)]
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(2 * WIDTH, 2.4), layout="constrained")
            axes = figure.subplots()
            colors = matplotlib.colormaps["cividis"]((levels - levels[0]) / max(levels[-1] - levels[0], 1e-9))
            kept = 100 - shares.sum(1)
            axes.bar(epochs, kept, 0.9, color=[colors[list(levels).index(level)] for level in scheduled])
            bottom = kept
            parts = [(levels[0], shares[:, 0]), *zip(levels[len(levels) - shares.shape[1] + 1 :], shares[:, 1:].T)]
            for (level, share), color, hatch in zip(
                parts, (COLORS[5], *(COLORS[3],) * 9), ("", "///", "xxx", "...") * 3
            ):
                word = "lowered" if level == levels[0] else "raised"
                axes.bar(
                    epochs,
                    share,
                    0.9,
                    bottom=bottom,
                    color=color,
                    hatch=hatch,
                    linewidth=0,
                    label=f"{word} to {level:g}",
                )
                bottom = bottom + share
            axes.set_xlabel("Epoch")
            axes.set_ylabel("Images (%)")
            axes.set_ylim(0, 100)
            axes.set_xlim(0.5, len(epochs) + 0.5)
            axes.spines[["top", "right"]].set_visible(False)
            norm = Normalize(levels[0], levels[-1])
            bar = figure.colorbar(ScalarMappable(norm, "cividis"), ax=axes, pad=0.01)
            bar.set_label("scheduled radius, eighths of eps", fontsize=7)
            figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=7)
        figures[f"{result.item.key}_{name}"] = figure
    return figures
