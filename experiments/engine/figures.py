"""The figures of items, drawn for print: one for each data set."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.engine.items import Setting
from experiments.engine.report import measure_name
from experiments.engine.results import Entry, Result, difference, measure
from piat_jax.analysis.curves import COLORS, MARKERS, STYLE, WIDTH, draw_groups
from piat_jax.analysis.pairs import draw_pairs, find_pairs
from piat_jax.analysis.runs import Group
from piat_jax.analysis.tables import attack_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render(figure: "Figure", suffix: str) -> bytes:
    """The file's content; PNG at 200 dpi, SVG without a date so that equal figures are equal files."""
    import matplotlib

    content = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if suffix == ".svg" else {}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "piat_jax"}):
        figure.savefig(content, format=suffix[1:], dpi=200, metadata=metadata)
    return content.getvalue()


def curves(result: Result, setting: Setting) -> "Figure":
    """PGD-20 accuracy over the epochs, a line for each row."""
    entries = result.ran(setting)
    groups = [Group(entry.runs[0].dataset, entry.runs[0].model, entry.runs[0].method, entry.runs) for entry in entries]
    return draw_groups(groups, _names(entries), key="test_pgd20")


def differences(result: Result, setting: Setting) -> "Figure | None":
    """What the item's claims are about: the first method minus each other, with intervals, a color for each measure."""
    claims = [(claim, found[0]) for claim in result.item.claims if (found := difference(result, setting, claim))]
    if not claims:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    measures = list(dict.fromkeys(claim.measure for claim, _ in claims))
    others = list(dict.fromkeys(claim.other for claim, _ in claims))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 0.28 * len(others)), layout="constrained")
        axes = figure.subplots()
        for index, key in enumerate(measures):
            own = [(others.index(claim.other), found) for claim, found in claims if claim.measure == key]
            means = np.array([found.mean for _, found in own])
            ends = np.array(
                [(found.low, found.high) if np.isfinite(found.low) else (found.mean,) * 2 for _, found in own]
            )
            axes.errorbar(
                means, [place + 0.22 * (index - (len(measures) - 1) / 2) for place, _ in own],
                xerr=np.abs(ends - means[:, None]).T, fmt=MARKERS[index], color=COLORS[index], markersize=3.5,
                elinewidth=0.9, capsize=2, label=measure_name(key),
            )  # fmt: skip
        axes.axvline(0, color="#808080", linewidth=0.8)
        axes.set_yticks(range(len(others)), others)
        axes.invert_yaxis()
        axes.set_xlabel(f"{claims[0][0].method} minus the row, in points")
        axes.grid(True, axis="x", color="#E0E0E0", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=len(measures), frameon=False, fontsize=7)
    return figure


def pairs(result: Result, setting: Setting) -> "Figure | None":
    """AutoAttack accuracy of each method without and with PIAT; PGD-20 where AutoAttack was not run."""
    found = find_pairs([run for entry in result.ran(setting) for run in entry.runs])
    return draw_pairs(found, "aa" if "aa" in result.item.attacks else "pgd20") if found else None


def variants(result: Result, setting: Setting) -> "Figure":
    """Accuracies of the item's first checkpoint over its rows: one hyper-parameter's values, or one part's forms."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    checkpoint, entries = result.item.checkpoints[0], result.ran(setting)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        axes = figure.subplots()
        for index, attack in enumerate(result.item.attacks):
            values = [[measure(run, f"{checkpoint}:{attack}") for run in entry.runs] for entry in entries]
            known = [np.array(side, float) for side in values if None not in side]
            if len(known) < len(entries):
                continue
            spread = [side.std(ddof=1) if len(side) > 1 else 0.0 for side in known]
            axes.errorbar(
                np.arange(len(known)) + 0.05 * (index - 1.5), [side.mean() for side in known], yerr=spread,
                fmt=f"{MARKERS[index]}-", color=COLORS[index], markersize=4, linewidth=1.0, elinewidth=0.7,
                capsize=2, label=attack_name(attack),
            )  # fmt: skip
        axes.set_xticks(range(len(entries)), _names(entries))
        axes.set_ylabel(f"Accuracy (%), {checkpoint}")
        axes.grid(True, axis="y", color="#E0E0E0", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        figure.legend(loc="outside upper center", ncols=len(result.item.attacks), frameon=False, fontsize=7)
    return figure


def _names(entries: Sequence[Entry]) -> list[str]:
    return [entry.row.name for entry in entries]
