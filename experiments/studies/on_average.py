"""What PIAT adds on average over methods: the differences of an item's pairs, first their mean for each seed.

    python -m experiments.studies.on_average experiments/results/piat/small/fig6.json

The pairs are those of the item's claims: PIAT+TRADES and TRADES, and so on. Methods share their seeds' images and
first weights, so the seeds are the independent samples.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import markdown
from experiments.engine.claims import Interval, interval
from experiments.engine.report import measure_name
from experiments.engine.results import by_seed
from piat_jax.analysis.runs import read_json
from piat_jax.cli import errors
from piat_jax.core.checks import InputError


class Average(NamedTuple):
    """The mean difference of a measure over pairs, with its interval over seeds."""

    difference: Interval
    grown: int  # runs that are above their partner
    runs: int
    seeds: int


def on_average(content: Mapping[str, Any], key: str, setting: str) -> Average:
    """The mean difference of a measure over the pairs of an item on one data set, and its interval over seeds.

    It is over the seeds that all methods of the pairs have.

    Args:
      content: an item's results, as experiments.run writes them.
      key: a measure, such as "final:aa", in percent.
      setting: the name of a data set of the item.

    Raises:
      InputError: the item has no claims there, or its methods have fewer than two seeds in common.

    >>> ours = {"A": [50.0, 52.0], "PIAT+A": [53.0, 54.0]}
    >>> rows = [{"setting": "s", "name": name, "ours": {"final:aa": values}} for name, values in ours.items()]
    >>> claims = [{"setting": "s", "method": "PIAT+A", "other": "A"}]
    >>> found = on_average({"item": "fig6", "seeds": [0, 1], "rows": rows, "claims": claims}, "final:aa", "s")
    >>> found.difference.mean, found.grown, found.runs
    (2.5, 2, 2)
    """
    claims = [claim for claim in content["claims"] if claim["setting"] == setting]
    pairs = list(dict.fromkeys((claim["method"], claim["other"]) for claim in claims))
    if not pairs:
        raise InputError(f"{content['item']} has no claims on {setting}, so no pairs; give such as fig6.json")
    rows = {row["name"]: row for row in content["rows"] if row["setting"] == setting}
    measured = {name: by_seed(content, rows[name], key) for pair in pairs for name in pair}
    seeds = sorted(set.intersection(*map(set, measured.values())))
    if len(seeds) < 2:
        least = min(measured, key=lambda name: len(measured[name]))
        raise InputError(
            f"the methods of {content['item']} have {len(seeds)} of the seeds of {key} in common, and two are needed; "
            f"{least} has {len(measured[least])}: run more of it"
        )
    differences = np.array([[measured[one][seed] - measured[other][seed] for seed in seeds] for one, other in pairs])
    return Average(interval(differences.mean(axis=0)), int((differences > 0).sum()), differences.size, len(seeds))


def to_markdown(content: Mapping[str, Any]) -> str:
    """A table for each data set of the item, with a line for each measure that has a number there."""
    return "\n\n".join(_table(content, setting["name"]) for setting in content["settings"])


def _table(content: Mapping[str, Any], setting: str) -> str:
    rows = []
    known = {key for row in content["rows"] if row["setting"] == setting for key in row["ours"]}
    for key in content["keys"]:
        if key in known:
            found = on_average(content, key, setting)
            grown = f"{found.grown} of {found.runs}"
            rows.append([measure_name(key), found.difference.text(), grown, found.seeds])
    return markdown.table((setting, "difference", "runs that grow", "seeds"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="an item's JSON file, such as fig6.json")
    given: Any = parser.parse_args(arguments)
    print(to_markdown(read_json(given.file, "python -m experiments.run")))


if __name__ == "__main__":
    errors.leave(errors.run(main))
