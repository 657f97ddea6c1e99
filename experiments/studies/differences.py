"""A row of an item beside every other: means and deviations, and differences paired by seed with 95 % intervals.

    python -m experiments.studies.differences experiments/results/piat/small/averaging.json PIAT --keys=final:aa,gap

It reads an item's JSON file, as experiments.run writes it, or the runs.csv of piat-report, where rows are methods.
Each seed of one row is compared with the same seed of the other: both have its images and first weights.
"""

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import markdown
from experiments.engine.claims import interval
from experiments.engine.report import measure_name
from experiments.engine.results import by_seed, paired
from piat_jax.analysis.runs import read_json, read_text
from piat_jax.analysis.tables import ABOUT_POINTS
from piat_jax.cli import errors
from piat_jax.core.checks import InputError, check_range

CHECKPOINTS = ("best", "final")
Table = Mapping[str, Mapping[str, Mapping[int, float]]]  # row, measure, seed


def of_item(content: Mapping[str, Any], setting: str) -> Table:
    """The numbers of an item on one data set: of each row each measure's, by seed."""
    return {
        row["name"]: {key: by_seed(content, row, key) for key in row["ours"]}
        for row in content["rows"]
        if row["setting"] == setting and row["ours"]
    }


def of_runs(lines: Sequence[Sequence[str]]) -> Mapping[str, Table]:
    """The accuracies in a runs.csv by data set and network: of each method each checkpoint's, by seed.

    Raises:
      InputError: it is another file, or two runs have the same method and seed.

    >>> of_runs([[*ABOUT_POINTS, "pgd10"], ["embedded", "small_resnet", "piat", "0", "final", "40", "61.5"]])
    {'embedded small_resnet': {'piat': {'final:pgd10': {0: 61.5}}}}
    """
    head, *rest = lines or [[]]
    if tuple(head[: len(ABOUT_POINTS)]) != ABOUT_POINTS:
        raise InputError(
            f"file starts with {','.join(head)!r}, not with {','.join(ABOUT_POINTS)!r}; give piat-report's runs.csv"
        )
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for line in rest:
        dataset, model, method, seed, what, _ = line[: len(ABOUT_POINTS)]
        if what not in CHECKPOINTS:
            continue
        measures = found.setdefault(f"{dataset} {model}", {}).setdefault(method, {})
        for attack, value in zip(head[len(ABOUT_POINTS) :], line[len(ABOUT_POINTS) :]):
            if value:
                by_seed = measures.setdefault(f"{what}:{attack}", {})
                if int(seed) in by_seed:
                    raise InputError(f"file has two runs of {method} with seed {seed}; compare runs that differ in one")
                by_seed[int(seed)] = float(value)
    return found


def to_markdown(table: Table, row: str, keys: Sequence[str] = (), digits: int = 1) -> str:
    """Two tables: every row's means and deviations over seeds, and what `row` has more than each other row.

    Bold: the interval lies on one side of 0. In brackets: the number of seeds, where it is less than the row's.

    Args:
      table: numbers by row, measure and seed, in percent or points.
      row: that is compared with each other row.
      keys: measures, the columns; without any, those that `row` has.
      digits: after the point.

    Raises:
      InputError: there is no such row, or it has no such measure.

    >>> table = {"PIAT": {"final:aa": {0: 61.0, 1: 60.0, 2: 62.0}}, "PGD-AT": {"final:aa": {0: 57.0, 1: 55.0}}}
    >>> print(to_markdown(table, "PIAT"))
    | | seeds | AA final |
    |---|---:|---:|
    | PIAT | 3 | 61.0 ± 1.0 |
    | PGD-AT | 2 | 56.0 ± 1.4 |
    <BLANKLINE>
    | PIAT minus | seeds | AA final |
    |---|---:|---:|
    | PGD-AT | 2 | +4.5 [-1.9, 10.9] |
    """
    if row not in table:
        raise InputError(f"there is no row {row!r}; there are {', '.join(map(repr, table))}")
    if unknown := [key for key in keys if key not in table[row]]:
        raise InputError(f"{row} has no {unknown[0]!r}; it has {', '.join(table[row])}")
    check_range("digits", digits, 0, 9)
    keys = keys or list(table[row])
    means = {name: [list(measures.get(key, {}).values()) for key in keys] for name, measures in table.items()}
    more = {
        name: [paired(table[row][key], measures.get(key, {})) for key in keys]
        for name, measures in table.items()
        if name != row
    }
    one = _by_measure("", keys, means, lambda values: _mean(values, digits))
    other = _by_measure(f"{row} minus", keys, more, lambda values: _difference(values, digits))
    return f"{one}\n\n{other}"


def _mean(values: Sequence[float], digits: int) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _difference(values: Sequence[float], digits: int) -> str:
    mean, low, high = interval(np.array(values))
    if len(values) < 2:
        return f"{mean:+.{digits}f}"
    text = f"{mean:+.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _by_measure(
    corner: str,
    keys: Sequence[str],
    rows: Mapping[str, Sequence[Sequence[float]]],
    text: Callable[[Sequence[float]], str],
) -> str:
    lines = []
    for name, columns in rows.items():
        most = max(map(len, columns))
        cells = [text(values) + f" ({len(values)})" * (len(values) < most) if values else "" for values in columns]
        lines.append([name, most, *cells])
    return markdown.table((corner, "seeds", *map(measure_name, keys)), lines)


def read(path: Path) -> Mapping[str, Table]:
    """The tables of a file by data set."""
    if path.suffix == ".csv":
        return of_runs(list(csv.reader(read_text(path, "piat-report").splitlines())))
    content = read_json(path, "experiments.run")
    if not content.keys() >= {"settings", "rows", "seeds"}:
        raise InputError(f"{path} has no rows of an item; give a file that experiments.run wrote, or a runs.csv")
    return {setting["name"]: of_item(content, setting["name"]) for setting in content["settings"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="an item's JSON file, or a runs.csv of piat-report")
    parser.add_argument("row", help="the row that is compared with all others, such as PIAT; in a runs.csv a method")
    parser.add_argument("--keys", default="", help="measures, with commas between; default: all that the row has")
    parser.add_argument("--digits", type=int, default=1, help="after the point (default 1)")
    given: Any = parser.parse_args(arguments)
    keys = [key for key in given.keys.split(",") if key]
    for name, table in read(given.file).items():
        print(f"{name}\n\n{to_markdown(table, given.row, keys, given.digits)}\n")


if __name__ == "__main__":
    errors.leave(errors.run(main))
