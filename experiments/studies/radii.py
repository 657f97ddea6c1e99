"""Fig. 2: which share of the images entropy sets to another radius than the epoch's, and to which."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.engine.items import Setting
from experiments.engine.results import Result
from piat_jax.analysis.curves import COLORS, STYLE, WIDTH
from piat_jax.analysis.runs import RunResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWERED, RAISED = "train_radius_lowered", "train_radius_raised_"


def run(result: Result) -> dict[str, Any]:
    """For each epoch the radius of the scheduler, and the shares that were lowered and raised; mean over seeds."""
    found, findings = {}, []
    for setting in result.settings:
        for entry in result.ran(setting):
            shares = np.mean([shares_of(run) for run in entry.runs], axis=0)
            found[setting.name] = {
                "levels": sorted(entry.runs[0].fields["ecas.levels"]),
                "shares": [" ".join(f"{share:.4g}" for share in row) for row in shares],
            }
            findings.append(_finding(setting.name, 100 * shares, len(entry.runs)))
    return {"radii": found, "findings": findings}


def _finding(setting: str, shares: np.ndarray, seeds: int) -> str:
    adjusted = shares.sum(1)
    middle = len(adjusted) // 2
    return (
        f"{setting}: entropy adjusts {adjusted[:middle].mean():.1f} % of the images in the first half of training and "
        f"{adjusted[middle:].mean():.1f} % in the second; {shares[:, 0].mean():.1f} % are lowered, "
        f"{shares[:, 1:].sum(1).mean():.1f} % raised, over all epochs. Seeds: {seeds}."
    )


def shares_of(run: RunResults) -> np.ndarray:
    """`[epochs, 1 + num_big]`: the share that was lowered, and those raised to each big radius, the smallest first."""
    raised = sorted(
        (name for name in run.metrics[0] if name.startswith(RAISED)), key=lambda name: int(name[len(RAISED) :])
    )
    return np.array([[entry[name] for name in (LOWERED, *raised)] for entry in run.metrics])


def draw(result: Result, setting: Setting) -> "Figure":
    """A bar for each epoch: below the images at the scheduler's radius, above those that entropy moved."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    data = result.study["radii"][setting.name]
    levels = np.array(data["levels"])
    shares = 100 * np.array([row.split() for row in data["shares"]], float)
    epochs = np.arange(1, len(shares) + 1)
    scheduled = levels[(epochs - 1) % len(levels)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * WIDTH, 2.4), layout="constrained")
        axes = figure.subplots()
        colors = matplotlib.colormaps["cividis"]((levels - levels[0]) / max(levels[-1] - levels[0], 1e-9))
        bottom = 100 - shares.sum(1)
        axes.bar(epochs, bottom, 0.9, color=[colors[list(levels).index(level)] for level in scheduled])
        raised = zip(levels[len(levels) - shares.shape[1] + 1 :], shares[:, 1:].T)
        parts = [
            (f"lowered to {levels[0]:g}", shares[:, 0]),
            *((f"raised to {level:g}", part) for level, part in raised),
        ]
        for (label, share), color, hatch in zip(parts, (COLORS[5], *(COLORS[3],) * 9), ("", "///", "xxx", "...") * 3):
            axes.bar(epochs, share, 0.9, bottom=bottom, color=color, hatch=hatch, linewidth=0, label=label)
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
    return figure
