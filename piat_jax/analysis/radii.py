"""Accuracy as a function of the radius, for runs that were evaluated at several radii."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from piat_jax.analysis.charts import draw_lines
from piat_jax.analysis.curves import MOST_LINES, Curve
from piat_jax.analysis.runs import IDLE, Group, RunResults, variants
from piat_jax.analysis.tables import NORM_NAMES, attack_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_RADIUS = ("evaluation.eps", "evaluation.step_size")
"""Fields that differ between evaluations of one experiment at several radii."""


def radius_groups(runs: Sequence[RunResults]) -> list[Group]:
    """Groups of runs that differ only in evaluation radius and seed, if there are several radii."""
    known = [run for run in runs if {"eps", "norm"} <= run.settings.keys()]
    reduced = {
        id(run): replace(run, fields={name: value for name, value in run.fields.items() if name not in OF_RADIUS})
        for run in known
    }
    found: dict[tuple[str, ...], list[RunResults]] = {}
    for run in known:
        fields = {name: value for name, value in reduced[id(run)].fields.items() if not name.startswith(IDLE)}
        key = (run.dataset, run.model, run.method, str(run.settings["norm"]), str(sorted(fields.items())))
        found.setdefault(key, []).append(run)
    several = [same for same in found.values() if len({run.settings["eps"] for run in same}) > 1]
    groups = []
    for same in several:
        first = same[0]
        alike = [reduced[id(other[0])] for other in several if other[0].method == first.method]
        names = variants(alike)
        name = names[[id(run) for run in alike].index(id(reduced[id(first)]))]
        groups.append(Group(first.dataset, first.model, first.method, tuple(same), name))
    return groups


def draw_radii(groups: Sequence[Group], attack: str, *, checkpoint: str = "best") -> "Figure | None":
    """Draw the accuracy under an attack at each radius (clean at 0), one line for each group of `radius_groups`.

    At each radius, the seeds that have it become their mean and a band from lowest to highest.

    Returns:
      The figure; None if no group has the attack at two radii, or norms differ.
    """
    norms = {group.runs[0].settings["norm"] for group in groups}
    curves = [_curve(group, attack, checkpoint) for group in groups[:MOST_LINES]]
    if len(norms) != 1 or not any(curves):
        return None
    (norm,) = norms
    along = f"{NORM_NAMES.get(norm, norm)} radius"
    return draw_lines(groups[:MOST_LINES], curves, f"{attack_name(attack)} accuracy (%)", along)


def _curve(group: Group, attack: str, checkpoint: str) -> Curve | None:
    values: dict[float, list[float]] = {}
    for run in group.runs:
        point = run.checkpoints.get(checkpoint)
        if point and attack in point.accuracy:
            values.setdefault(float(run.settings["eps"]), []).append(100 * point.accuracy[attack])
            if "clean" in point.accuracy:
                values.setdefault(0.0, []).append(100 * point.accuracy["clean"])
    if len(values.keys() - {0.0}) < 2:
        return None
    radii = sorted(values)
    parts = ([reduce(values[eps]) for eps in radii] for reduce in (np.mean, np.min, np.max))
    return Curve(np.array(radii), *map(np.array, parts))
