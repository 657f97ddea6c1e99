"""A table of means over seeds: its cells, its construction from runs, and its formats."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from piat_jax.analysis.runs import Group, RunResults

MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """Percent: the mean over seeds, and the sample standard deviation if there are several."""

    mean: float
    std: float | None = None
    best: bool = False
    digits: int = 2

    def __str__(self) -> str:
        digits = self.digits
        return f"{self.mean:.{digits}f}" + ("" if self.std is None else f" ± {self.std:.{digits}f}")


@dataclass(frozen=True)
class Table:
    """A table that renders to Markdown, CSV and plain text.

    A None cell has no value. The first `labels` columns are text, followed by the number of seeds.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | Cell | None, ...], ...]
    labels: int
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """Markdown, aligned, with the best of each column in bold and notes below."""
        cells = [
            [f"**{cell}**" if isinstance(cell, Cell) and cell.best else _text(cell) for cell in r] for r in self.rows
        ]
        widths = self._widths(cells, 3)
        rule = ["-" * w if i < self.labels else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        lines = [f"| {' | '.join(self._pad(line, widths))} |" for line in [[*self.columns], rule, *cells]]
        return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def to_text(self) -> str:
        """Text for the terminal, aligned, without markup."""
        cells = [[_text(cell) for cell in row] for row in self.rows]
        widths = self._widths(cells, 1)
        lines = ["  ".join(self._pad(line, widths)).rstrip() for line in [[*self.columns], *cells]]
        lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
        return "\n".join(lines) + "\n" + "".join(f"{note}\n" for note in self.notes)

    def to_csv(self) -> str:
        """CSV, means with four decimals; a column with several seeds is followed by its standard deviation."""
        several = [any(isinstance(cell, Cell) and cell.std is not None for cell in cells) for cells in zip(*self.rows)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = [[name, f"{name} std"] if twice else [name] for name, twice in zip(self.columns, several)]
        writer.writerow([name for pair in names for name in pair])
        for row in self.rows:
            line = []
            for cell, twice in zip(row, several):
                std = None
                if isinstance(cell, Cell):
                    cell, std = f"{cell.mean:.4f}", cell.std
                line.append("" if cell is None else cell)
                if twice:
                    line.append("" if std is None else f"{std:.4f}")
            writer.writerow(line)
        return out.getvalue()

    def _indices(self) -> range:
        return range(len(self.columns))

    def _widths(self, cells: list[list[str]], least: int) -> list[int]:
        return [max(least, *(len(line[i]) for line in [self.columns, *cells])) for i in self._indices()]

    def _pad(self, line: Sequence[str], widths: list[int]) -> list[str]:
        return [t.ljust(w) if i < self.labels else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths))]


@dataclass(frozen=True)
class Column:
    """A column of numbers: a run's value, and whether high or low is better."""

    name: str
    value: Callable[[RunResults], float | None]  # percent, or None
    lowest: bool = False
    unsigned: bool = False
    digits: int = 2


def make_table(groups: Sequence[Group], columns: Sequence[Column], notes: Sequence[str]) -> Table:
    """One row per group; data set and model are columns if they differ."""
    labels = {
        "Dataset": [group.dataset for group in groups],
        "Model": [group.model for group in groups],
    }
    labels = {name: texts for name, texts in labels.items() if len(set(texts)) > 1}
    labels["Method"] = [group.name for group in groups]
    seeds = [len(group.runs) for group in groups]
    if max(seeds) > 1:
        notes = [*notes, "Mean ± sample standard deviation over seeds."]
    cells = [_mark_best([_cell(column, group) for group in groups], groups, column.lowest) for column in columns]
    return Table(
        (*labels, "Seeds", *(column.name for column in columns)),
        tuple(zip(*labels.values(), seeds, *cells)),
        len(labels),
        tuple(notes),
    )


def _cell(column: Column, group: Group) -> Cell | None:
    cell = cell_of([column.value(run) for run in group.runs])
    if cell is None:
        return None
    return replace(cell, mean=abs(cell.mean) if column.unsigned else cell.mean, digits=column.digits)


def cell_of(values: Sequence[float | None]) -> Cell | None:
    """Mean and deviation over seeds; None if a seed has no value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Cell(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None)


def _mark_best(cells: list[Cell | None], groups: Sequence[Group], lowest: bool) -> list[Cell | None]:
    """Mark the best of each data set and model, and values that print the same; nothing if there is only one row."""
    marked = list(cells)
    for block in {(group.dataset, group.model) for group in groups}:
        inside = {i: cells[i] for i, group in enumerate(groups) if (group.dataset, group.model) == block}
        rounded = {i: round(cell.mean, cell.digits) for i, cell in inside.items() if cell is not None}
        if len(rounded) < 2:
            continue
        best = (min if lowest else max)(rounded.values())
        for i, value in rounded.items():
            cell = cells[i]
            if value == best and cell is not None:
                marked[i] = replace(cell, best=True)
    return marked


def _text(cell: str | int | Cell | None) -> str:
    return MISSING if cell is None else str(cell)
