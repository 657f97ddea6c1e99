"""How many seeds decide a difference: from the spread that was measured, before anything more is trained.

    python -m experiments.studies.power experiments/results/piat/small --out=experiments/results/piat/power.md

A difference of two methods is paired by seed. With s its standard deviation over seeds, n seeds decide a true
difference d at level alpha with the power of Student's t test, whose statistic is noncentral t with n - 1 degrees of
freedom and `d sqrt(n) / s`. Spreads of three seeds are hardly known themselves, so they are pooled over all claims
about one measure: the root of the mean of their variances.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import markdown
from experiments.engine.results import by_seed, paired
from piat_jax.cli import errors
from piat_jax.core.checks import InputError, check_range

MOST_SEEDS = 1000


class Spread(NamedTuple):
    """How much paired differences of a measure vary over seeds."""

    measure: str
    claims: int  # how many were pooled
    seeds: int  # of all of them together
    deviation: float  # points
    images: tuple[int, ...]  # on how many accuracies were measured


def power(difference: float, deviation: float, seeds: int, alpha: float = 0.05) -> float:
    """The probability that a paired two-sided t test of so many seeds finds a true difference.

    Args:
      difference: of the means, in the unit of `deviation`.
      deviation: of the paired differences over seeds, above 0.
      seeds: at least 2.
      alpha: level, in (0, 1).

    >>> round(power(1.0, 1.0, 10), 3), round(power(0.0, 1.0, 10), 3)
    (0.803, 0.05)
    """
    from scipy.stats import nct, t

    border, shift = t.ppf(1 - alpha / 2, seeds - 1), difference * np.sqrt(seeds) / deviation
    # If SciPy has no number for the far tail, it is negligible.
    return float(nct.sf(border, seeds - 1, shift) + np.nan_to_num(nct.cdf(-border, seeds - 1, shift)))


def seeds_needed(difference: float, deviation: float, *, alpha: float = 0.05, wanted: float = 0.8) -> int:
    """The fewest seeds whose power is at least `wanted`; `MOST_SEEDS` where that is not enough.

    >>> seeds_needed(1.0, 1.0), seeds_needed(1.0, 3.0), seeds_needed(1.0, 1.0, alpha=0.05 / 46)
    (10, 73, 23)
    """
    check_range("difference", difference, 0, 100, open_low=True)
    check_range("wanted", wanted, 0, 1)
    low, high = 2, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, deviation, middle, alpha) >= wanted else (middle + 1, high)
    return low


def spreads(folder: Path) -> list[Spread]:
    """The spread of every measure that claims are about, of the items in a folder of results.

    Raises:
      InputError: no item there has a claim of two seeds or more.
    """
    found: dict[str, list[np.ndarray]] = {}
    images: dict[str, set[int]] = {}
    for path in sorted(folder.glob("*.json")):
        item = json.loads(path.read_text())
        if "claims" not in item:
            continue
        settings = {setting["name"]: setting for setting in item["settings"]}
        for claim in item["claims"]:
            for name, setting in settings.items():
                rows = {row["name"]: row for row in item["rows"] if row["setting"] == name}
                pair = [rows[claim[key]] for key in ("method", "other") if claim[key] in rows]
                if len(pair) < 2:
                    continue
                differences = paired(*(by_seed(item, row, claim["measure"]) for row in pair))
                if len(differences) < 2:
                    continue
                found.setdefault(claim["measure"], []).append(np.array(differences))
                fewer = setting["aa_examples"] if claim["measure"].endswith(":aa") else 0
                images.setdefault(claim["measure"], set()).add(fewer or setting["test_examples"])
    if not found:
        raise InputError(
            f"{folder} has no item with a claim of two seeds or more; give such as experiments/results/piat/small"
        )
    made = []
    for measure, differences in sorted(found.items()):
        variances = [each.var(ddof=1) for each in differences]
        seeds = sum(map(len, differences))
        counts = tuple(sorted(images[measure]))
        made.append(Spread(measure, len(differences), seeds, float(np.sqrt(np.mean(variances))), counts))
    return made


def to_markdown(found: Sequence[Spread], points: float, claims: int) -> str:
    """The table: seeds that decide `points` for one claim, and where so many claims are made at once."""
    lines = [
        f"# How many seeds decide {points:g} point{'s' * (points != 1)}",
        "",
        "Paired differences between two methods, in points. `s` is their standard deviation over seeds, pooled over",
        "claims about one measure. Seeds are the fewest with which a paired t test finds a true difference of",
        f"{points:g} with probability 0.8: at level 0.05, and at 0.05/{claims}, the first step of Holm's correction",
        f"for {claims} claims.",
        "",
    ]
    heads = ("measure", "images", "claims", "s", "seeds at 0.05", f"seeds at 0.05/{claims}", "found with 3 seeds")
    rows = []
    for each in found:
        counts = [seeds_needed(points, each.deviation, alpha=alpha) for alpha in (0.05, 0.05 / claims)]
        needed = [f"{count:,}" if count < MOST_SEEDS else f"over {MOST_SEEDS:,}" for count in counts]
        chances = [f"{power(points, each.deviation, seeds):.0%}" for seeds in (3, 10)]
        images = " or ".join(f"{count:,}" for count in each.images)
        rows.append([each.measure, images, each.claims, f"{each.deviation:.2f}", *needed, *chances])
    return "\n".join([*lines, markdown.table((*heads, "with 10"), rows)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the JSON files of items, as experiments.run writes them")
    parser.add_argument("--points", type=float, default=1.0, help="the difference that is to be decided")
    parser.add_argument("--out", type=Path, help="file for the table; without it, it is printed")
    given: Any = parser.parse_args(arguments)
    found = spreads(given.folder)
    text = to_markdown(found, given.points, sum(each.claims for each in found))
    if given.out:
        given.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    errors.leave(errors.run(main))
