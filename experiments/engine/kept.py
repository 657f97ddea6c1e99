"""The numbers of finished runs in one file, from which reports are made after the runs' folders are gone.

Many seeds are trained at several times and on several machines. `experiments.run` adds each finished run to runs.json
of its results, and reports on those that are there too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piat_jax.analysis.runs import Checkpoint, RunResults, read_json
from piat_jax.core.checks import InputError
from piat_jax.core.files import write_file

FILE = "runs.json"
FIELDS = ("method", "dataset", "model", "epochs", "seed", "num_examples", "aa_examples", "held_out", "select")
AA_BLOCKS = "aa_blocks"  # a run's setting: AutoAttack ran by margin, in blocks of so many images (studies/screened.py)
SCREENED = "screened"  # another: for each checkpoint the `FOUND` of that study
FOUND = ("accuracy", "pgd_cw", "attacked", "broken")
ABOUT = ("devices", "machine", "versions", "commit")


def name_of(folder: Path) -> str:
    """What a run is called in the file: its data set's folder and its own.

    >>> name_of(Path("runs/papers/embedded_512/piat-seed0"))
    'embedded_512/piat-seed0'
    """
    return f"{folder.parent.name}/{folder.name}"


def load(out: Path) -> dict[str, RunResults]:
    """The runs in `out/runs.json` by name; {} without the file. Their folders need not exist.

    Raises:
      InputError: the file is not JSON, or not one of `save`.
    """
    path = out / FILE
    if not path.exists():
        return {}
    content = read_json(path, "python -m experiments.run")
    try:
        return {name: _result(Path(name), stored, content["ran_on"]) for name, stored in content["runs"].items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not hold runs as experiments.run writes them ({error!r}); move it away, or restore it"
        ) from error


def save(out: Path, runs: Mapping[str, RunResults]) -> Path:
    """Add runs, by name, to `out/runs.json`, a line for each; they replace those of the same names."""
    found = {**load(out), **runs}
    ran_on: list[dict[str, Any]] = []
    lines = []
    for name, run in sorted(found.items()):
        about = {key: run.description.get(key) for key in ABOUT}
        if about not in ran_on:
            ran_on.append(about)
        lines.append(f"{json.dumps(name)}: {json.dumps(_stored(run, ran_on.index(about)))}")
    machines = ",\n".join(map(json.dumps, ran_on))
    text = '{"ran_on": [\n' + machines + '\n], "runs": {\n' + ",\n".join(lines) + "\n}}\n"
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / FILE, lambda file: file.write(text.encode()))
    return out / FILE


def _stored(run: RunResults, machine: int) -> dict[str, Any]:
    measured = [name for name in dict.fromkeys(key for entry in run.metrics for key in entry) if _is_accuracy(name)]
    return {
        **{name: getattr(run, name) for name in FIELDS},
        "checkpoints": {
            name: {"epoch": point.epoch, "accuracy": dict(point.accuracy)} for name, point in run.checkpoints.items()
        },
        "during_training": {
            name: " ".join(f"{entry['epoch']}:{entry[name]!r}" for entry in run.metrics if name in entry)
            for name in measured
        },
        **_known(run.settings),
        "ran_on": machine,
    }


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the settings, in one order, so that equal results are equal files."""
    found = {name: settings[name] for name in (AA_BLOCKS, SCREENED) if name in settings}
    return {**found, SCREENED: dict(sorted(found[SCREENED].items()))} if SCREENED in found else found


def _is_accuracy(name: str) -> bool:
    return name.startswith(("test_", "validation_"))


def _result(folder: Path, stored: Mapping[str, Any], ran_on: list[dict[str, Any]]) -> RunResults:
    metrics: dict[int, dict[str, float]] = {}
    for name, series in stored["during_training"].items():
        for pair in series.split():
            epoch, _, value = pair.partition(":")
            metrics.setdefault(int(epoch), {"epoch": int(epoch)})[name] = float(value)
    return RunResults(
        folder,
        **{name: stored[name] for name in FIELDS},
        metrics=tuple(metrics[epoch] for epoch in sorted(metrics)),
        checkpoints={
            name: Checkpoint(point["epoch"], point["accuracy"]) for name, point in stored["checkpoints"].items()
        },
        settings=_known(stored),
        description=ran_on[stored["ran_on"]],
    )
