"""Results of an item's runs, as plain JSON: measures of each run, differences between methods, environments."""

import csv
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.claims import Claim, Interval, interval, verdict
from experiments.engine.items import Block, Item, Row, Setting, run_folder
from experiments.engine.kept import AA_BLOCKS, ABOUT, FOUND, SCREENED, name_of
from experiments.studies import screened
from piat_jax.analysis.runs import EVALUATION, RunResults, load_run
from piat_jax.analysis.tables import accuracy_of, chosen_on, oscillation
from piat_jax.core.checks import InputError

PGD = "test_pgd20"
PAPER_TABLES = Path(__file__).parent / "paper_tables.csv"
IN_TABLES = {"cw20": "cw", "cw30": "cw"}  # what the papers call an attack


@dataclass(frozen=True)
class Entry:
    """A row on one data set: its runs, one per finished seed; none if only the published number is quoted."""

    setting: Setting
    row: Row
    runs: tuple[RunResults, ...] = ()


@dataclass(frozen=True)
class Result:
    """An item's runs."""

    item: Item
    scale: str
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]
    study: Mapping[str, Any] = field(default_factory=dict)

    def entry(self, setting: Setting, name: str) -> Entry | None:
        """The row called `name` on a data set."""
        found = [entry for entry in self.entries if entry.setting == setting and entry.row.name == name]
        return found[0] if found else None

    def ran(self, setting: Setting) -> list[Entry]:
        """The rows on a data set that have a run."""
        return [entry for entry in self.entries if entry.setting == setting and entry.runs]

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The data sets, in order."""
        return tuple({entry.setting.name: entry.setting for entry in self.entries}.values())


def collect(
    item: Item,
    scale: str,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    folder: Path,
    kept: Mapping[str, RunResults] = {},
) -> Result:
    """Read the runs of an item; those that were not evaluated yet are left out.

    Args:
      item: a figure or table.
      scale: of `SCALES`.
      settings: its data sets.
      seeds: of its runs.
      folder: of the runs' folders.
      kept: earlier results, by `kept.name_of`: for runs whose folders are gone, or have less.
    """
    entries = []
    for setting in settings:
        for row in item.rows:
            folders = [run_folder(folder, setting, row, seed) for seed in seeds] if row.method else []
            found = [_read(path, kept) for path in folders]
            entries.append(Entry(setting, row, tuple(run for run in found if run)))
    return Result(item, scale, tuple(seeds), tuple(entries))


def _read(folder: Path, kept: Mapping[str, RunResults]) -> RunResults | None:
    if not (folder / EVALUATION).exists():
        return kept.get(name_of(folder))
    run, earlier = load_run(folder), kept.get(name_of(folder))
    points, settings = dict(run.checkpoints), dict(run.settings)
    details = screened.read(folder)
    if details:
        settings[SCREENED] = {name: {key: each[key] for key in FOUND} for name, each in details.items()}
    for name, each in details.items():
        if name in points and "aa" not in points[name].accuracy:
            points[name] = replace(points[name], accuracy={**points[name].accuracy, "aa": each["accuracy"]})
            settings[AA_BLOCKS] = each["blocks_of"]
    found = replace(run, checkpoints=points, settings=settings)
    return completed(found, earlier) if earlier and _series(earlier) == _series(found) else found


def completed(run: RunResults, earlier: RunResults) -> RunResults:
    """The run with accuracies that only its earlier results have, at checkpoints whose other accuracies are equal.

    So a folder that was evaluated under fewer attacks does not remove numbers.
    """
    points, settings = dict(run.checkpoints), dict(run.settings)
    for name, before in earlier.checkpoints.items():
        now = points.get(name)
        both = now and now.accuracy.keys() & before.accuracy.keys()
        if not now or not both or any(now.accuracy[key] != before.accuracy[key] for key in both):
            continue  # other weights
        points[name] = replace(now, accuracy={**before.accuracy, **now.accuracy})
        if name in earlier.settings.get(SCREENED, {}):
            details = {name: earlier.settings[SCREENED][name], **settings.get(SCREENED, {})}
            settings = {**earlier.settings, **settings, SCREENED: details}
    return replace(run, checkpoints=points, settings=settings)


def measure(run: RunResults, key: str) -> float | None:
    """A number of a run, in percent or points unless it says otherwise; None where it is not known.

    Keys: "best:pgd20" and the like; "diff:pgd20", best minus final; "mean:best" and "nrr:best", the arithmetic and the
    harmonic mean of clean and AutoAttack accuracy; "beyond:best", what AutoAttack breaks of that which PGD-20 and CW-20
    leave; "oscillation" and "gap", highest minus last, of the PGD-20 accuracy during training; "seconds", the median
    epoch's.
    """
    kind, _, rest = key.partition(":")
    if kind in ("best", "final"):
        return accuracy_of(rest, kind)(run)
    if kind == "oscillation":
        return oscillation(run)
    if kind == "gap":
        values = run.series(PGD)[1]
        return float(100 * (values.max() - values[-1])) if len(values) else None
    if kind == "seconds":
        # The first epoch compiles.
        times = [entry["train_seconds"] for entry in run.metrics[1:] if "train_seconds" in entry]
        return float(np.median(times)) if times else None
    if kind == "beyond":
        # Both on the same images: evaluation.json may have AutoAttack on fewer.
        found = run.settings.get(SCREENED, {}).get(rest)
        return 100 * (found["pgd_cw"] - found["accuracy"]) if found else None
    pair = (f"best:{rest}", f"final:{rest}") if kind == "diff" else (f"{rest}:clean", f"{rest}:aa")
    one, other = (measure(run, name) for name in pair)
    if one is None or other is None:
        return None
    if kind == "diff":
        return one - other
    return _of_two(kind, one, other)


def _of_two(kind: str, clean: float, robust: float) -> float:
    """Mean or NRR: `2 clean robust / (clean + robust)`."""
    if kind == "mean":
        return (clean + robust) / 2
    return 2 * clean * robust / (clean + robust) if clean + robust else 0.0


@functools.cache
def published_tables() -> Mapping[tuple[str, ...], float]:
    """Every published number in percent, by paper, table, dataset, model, norm, method, checkpoint and metric."""
    with PAPER_TABLES.open(newline="") as file:
        return {tuple(line[:-1]): float(line[-1]) for line in list(csv.reader(file))[1:]}


def published(paper: str, item: Item, block: Block | None, row: Row, key: str) -> float | None:
    """The paper's number for a measure of a row; None where it has none."""
    if block is None:
        return None
    kind, _, rest = key.partition(":")

    def look_up(checkpoint: str, attack: str) -> float | None:
        name = (
            paper.upper(),
            item.published,
            *block,
            row.published or row.name,
            checkpoint,
            IN_TABLES.get(attack, attack),
        )
        return published_tables().get(name)

    if kind in ("best", "final"):
        return look_up(kind, rest)
    if kind == "diff":
        best, final = look_up("best", rest), look_up("final", rest)
        return None if best is None or final is None else abs(best - final)
    if kind in ("mean", "nrr"):
        clean, robust = look_up(rest, "clean"), look_up(rest, "aa")
        return None if clean is None or robust is None else _of_two(kind, clean, robust)
    return None


def difference(result: Result, setting: Setting, claim: Claim) -> tuple[Interval, int] | None:
    """The paired difference, over the seeds that have both numbers, that a claim is about; None where none has."""
    pair = [result.entry(setting, name) for name in (claim.method, claim.other)]
    known = paired(*(_measured(entry, claim.measure) if entry else {} for entry in pair))
    return (interval(np.array(known)), len(known)) if known else None


def to_json(paper: str, result: Result, keys: Sequence[str]) -> dict[str, Any]:
    """The item's results, as the report reads them."""
    item = result.item
    rows = []
    for entry in result.entries:
        block = entry.setting.beside
        theirs = {key: published(paper, item, block, entry.row, key) for key in keys}
        ours = {key: found for key in keys if (found := _measured(entry, key))}
        rows.append(
            {
                "setting": entry.setting.name,
                "name": entry.row.name,
                "method": entry.row.method,
                "overrides": dict(entry.row.overrides),
                "note": entry.row.note,
                "ours": {key: list(found.values()) for key, found in ours.items()},
                "of_seeds": {key: list(found) for key, found in ours.items() if len(found) < len(result.seeds)},
                "paper": {key: value for key, value in theirs.items() if value is not None},
                "during_training": [_series(run) for run in entry.runs],
            }
        )
    claims = []
    for setting in result.settings:
        for claim in item.claims:
            if found := difference(result, setting, claim):
                shown, count = found
                low, high = (value if np.isfinite(value) else None for value in shown[1:])
                about = {"setting": setting.name, **claim._asdict(), "seeds": count, "mean": shown.mean}
                claims.append({**about, "low": low, "high": high, "verdict": verdict(claim, shown)})
    runs = [run for entry in result.entries for run in entry.runs]
    return {
        "paper": paper,
        "item": item.key,
        "title": item.title,
        "scale": result.scale,
        "seeds": list(result.seeds),
        "keys": list(keys),
        "as_table": item.as_table,
        "settings": [_about(setting, result) for setting in result.settings],
        "rows": rows,
        "claims": claims,
        "study": dict(result.study),
        "notes": list(item.notes),
        "ran_on": _environments(runs),
    }


def _measured(entry: Entry, key: str) -> dict[int, float]:
    """What is known of a row's runs, by seed."""
    return {run.seed: value for run in entry.runs if (value := measure(run, key)) is not None}


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """The differences at the seeds that both have.

    >>> paired({0: 3.0, 1: 5.0}, {1: 4.0, 2: 1.0})
    [1.0]
    """
    return [value - other[seed] for seed, value in one.items() if seed in other]


def by_seed(content: Mapping[str, Any], row: Mapping[str, Any], key: str) -> dict[int, float]:
    """The numbers of a row of `to_json` by seed: of all seeds, unless the row names those it has.

    Raises:
      InputError: the row has numbers of fewer seeds and does not name them, as files had until November 2026.

    >>> by_seed({"seeds": [0, 1, 2]}, {"ours": {"gap": [1.5, 2.5]}, "of_seeds": {"gap": [0, 2]}}, "gap")
    {0: 1.5, 2: 2.5}
    """
    values = row["ours"].get(key, [])
    seeds = row.get("of_seeds", {}).get(key, content["seeds"] if values else [])
    if len(seeds) != len(values):
        raise InputError(
            f"{row['name']} has {key} for {len(values)} of {len(seeds)} seeds and does not name them; "
            "write the file again by experiments.run with --collect"
        )
    return dict(zip(seeds, values))


def _series(run: RunResults) -> str:
    """PGD-20 accuracy in percent by epoch, one run a line: "5:51.2 10:53.4"."""
    return " ".join(f"{epoch}:{100 * value:.4g}" for epoch, value in zip(*run.series(PGD)))


def _about(setting: Setting, result: Result) -> dict[str, Any]:
    runs = [run for entry in result.entries if entry.setting == setting for run in entry.runs]
    return {
        "name": setting.name,
        "title": setting.title,
        "config": setting.config,
        "overrides": dict(setting.overrides),
        "differs": setting.differs,
        "beside": list(setting.beside) if setting.beside else None,
        "test_examples": max((run.num_examples for run in runs), default=0),
        "aa_examples": setting.aa_examples,
        AA_BLOCKS: max((run.settings.get(AA_BLOCKS, 0) for run in runs), default=0),
        "chosen_on": " or ".join(sorted({chosen_on(run) for run in runs})),
    }


def _environments(runs: Sequence[RunResults]) -> list[dict[str, Any]]:
    """Devices, versions and commits, each combination once."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        kept = {name: run.description.get(name) for name in ABOUT}
        found.setdefault(json.dumps(kept, sort_keys=True), kept)
    return list(found.values())
