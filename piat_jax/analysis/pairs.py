"""Each method without and with PIAT, as a table and as a figure, as in the PIAT paper's Table III and Fig. 6."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from piat_jax.analysis.curves import COLORS, STYLE, WIDTH, plain
from piat_jax.analysis.runs import RunResults, group_runs
from piat_jax.analysis.table import Cell, Table, cell_of
from piat_jax.analysis.tables import accuracy_of, attack_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Pair(NamedTuple):
    """One method's runs without and with PIAT, seed by seed."""

    name: str
    without: tuple[RunResults, ...]
    within: tuple[RunResults, ...]

    def cells(self, attack: str, checkpoint: str) -> tuple[Cell | None, Cell | None, Cell | None]:
        """Accuracy without and with PIAT, and the mean difference over seeds."""
        value = accuracy_of(attack, checkpoint)
        one, other = ([value(run) for run in runs] for runs in (self.without, self.within))
        change = [None if a is None or b is None else b - a for a, b in zip(one, other)]
        return cell_of(one), cell_of(other), cell_of(change)


def find_pairs(runs: Sequence[RunResults]) -> list[Pair]:
    """The methods that were run without and with PIAT with the same seeds; other runs are left out.

    Raises:
      InputError: from group_runs.
    """
    groups = {(group.dataset, group.model, group.method, group.variant): group for group in group_runs(runs)}
    pairs = []
    for (dataset, model, method, variant), group in groups.items():
        partner = groups.get((dataset, model, f"{method}+piat", variant))
        if partner is None:
            continue
        by_seed = [{run.seed: run for run in side.runs} for side in (group, partner)]
        seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
        if seeds:
            pairs.append(Pair(group.name, *(tuple(side[seed] for seed in seeds) for side in by_seed)))
    return pairs


def piat_table(pairs: Sequence[Pair], checkpoint: str) -> Table:
    """A table of the accuracy without and with PIAT under each attack, the better one in bold, and the change.

    Args:
      pairs: at least one.
      checkpoint: "best" or "final".
    """
    attacks = attack_names([run for pair in pairs for run in (*pair.without, *pair.within)])
    columns, rows = ["Method", "Seeds"], []
    for name in attacks.values():
        columns += [name, f"{name} with PIAT", f"{name} Change"]
    for pair in pairs:
        row: list[str | int | Cell | None] = [pair.name, len(pair.without)]
        for attack in attacks:
            one, other, change = pair.cells(attack, checkpoint)
            if one and other:
                one, other = replace(one, best=one.mean >= other.mean), replace(other, best=other.mean >= one.mean)
            row += [one, other, change]
        rows.append(tuple(row))
    notes = [f"Accuracy (%) of the {checkpoint} checkpoint; Change: with PIAT minus without, seed by seed."]
    if max(len(pair.without) for pair in pairs) > 1:
        notes.append("Mean ± sample standard deviation over seeds.")
    return Table(tuple(columns), tuple(rows), 1, tuple(notes))


def draw_pairs(pairs: Sequence[Pair], attack: str = "pgd20") -> "Figure":
    """Best and final accuracy of each method, without PIAT hollow and with it filled; lines are +- one deviation.

    Args:
      pairs: at least one, drawn from the top down.
      attack: the accuracy to draw; pairs without it stay empty.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    label = attack_names([run for pair in pairs for run in pair.without]).get(attack, attack)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * WIDTH, 0.7 + 0.19 * len(pairs)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True, sharex=True)
        for axes, checkpoint in zip(panels, ("best", "final")):
            for height, pair in enumerate(pairs):
                one, other, _ = pair.cells(attack, checkpoint)
                if not one or not other:
                    continue
                axes.plot([one.mean, other.mean], [height, height], color="#909090", linewidth=1.0, zorder=2)
                for cell, offset, color, face in (
                    (one, -0.12, COLORS[1], "white"),
                    (other, 0.12, COLORS[0], COLORS[0]),
                ):
                    axes.errorbar(
                        cell.mean, height + offset, xerr=cell.std, fmt="o", color=color, markerfacecolor=face,
                        markersize=4, elinewidth=0.7, zorder=3,
                    )  # fmt: skip
            axes.set_xlabel(f"{label} accuracy (%), {checkpoint}")
            axes.grid(True, axis="x", color="#E0E0E0", linewidth=0.5)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(6))
        panels[0].set_yticks(range(len(pairs)), [plain(pair.name) for pair in pairs])
        panels[0].invert_yaxis()
        for color, face, text in ((COLORS[1], "white", "without PIAT"), (COLORS[0], COLORS[0], "with PIAT")):
            panels[0].plot([], [], "o", color=color, markerfacecolor=face, markersize=4, label=text)
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure
