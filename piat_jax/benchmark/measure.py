"""Measure cases on this machine, and write the results: one line of results.jsonl each, and a table of all."""

import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from piat_jax.attacks.ensemble import VERSIONS
from piat_jax.benchmark import ours
from piat_jax.benchmark.interleaved import Case, Measured, Prepare, measure
from piat_jax.core.checks import InputError, check_at_least, check_choice, check_count
from piat_jax.core.files import expanded
from piat_jax.models import DTYPES

AUTOATTACK = VERSIONS["standard"]
# An accelerator's rows, which are empty until they are measured.
PLANNED = [
    Case(what=what, model=model, batch=batch, dtype="bfloat16", steps=steps)
    for model in ("resnet18", "wrn_32_10")
    for batch in (128, 512, 1024)
    for what, steps in (("train", 10), ("evaluate", 20))
]
COLUMNS = (
    "device", "date", "jax", "what", "model", "batch", "dtype", "steps", "side", "img/s", "min..max", "n",
    "ours / side", "compile s", "peak MiB", "TFLOP/s", "of matmul",
)  # fmt: skip


def run(values: Any, sides: Mapping[str, Prepare]) -> None:
    """Measure every case in `values`, the flags of piat-benchmark; "ours" is the first of `sides`."""
    cases, out = _cases(values), expanded(values.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out={str(out)!r} is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    timing = {"rounds": values.rounds, "seconds": values.seconds}
    matrix = measure(sides, Case(what="matmul", dtype=values.dtype), **timing)
    matrix_rate = max((statistics.median(side.rates) for side in matrix.values()), default=math.nan)
    for case in cases:
        if time.perf_counter() - began > 60 * values.minutes:
            print(
                f"--minutes={values.minutes:g} are over: {case.what} of {case.model}, batch {case.batch}, is left out"
            )
            continue
        measured = measure(sides, case, **timing)
        if "ours" not in measured:
            print(f"{case.what} of {case.model}, batch {case.batch}, failed; nothing is written of it")
            continue
        result = row(case, measured, matrix_rate)
        # At once: the next case may take hours.
        with (out / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
        (out / "results.md").write_text(table(read_rows(out / "results.jsonl")))
        print("\n".join(_lines(result)), flush=True)


def _cases(values: Any) -> list[Case]:
    """All cases of the flags, model by model."""
    for name in ("models", "batches", "what"):
        if not values[name].value:
            raise InputError(f"{name} is empty; give at least one")
    for model in values.models:
        check_choice("models", model, ours.NETWORKS)
    for what in values.what:
        check_choice("what", what, ("train", "evaluate", "autoattack", *AUTOATTACK))
    check_choice("dtype", values.dtype, DTYPES)
    for text in values.batches:
        if not text.isdecimal() or int(text) < 2:
            raise InputError(f"batches={text!r} must be whole numbers from 2 on, such as 64,128")
    check_count("steps", values.steps, 1)
    check_at_least("rounds", values.rounds, 5)
    check_at_least("seconds", values.seconds, 0)
    expanded = [name for what in values.what for name in (AUTOATTACK if what == "autoattack" else (what,))]
    return [
        Case(
            what=what,
            model=model,
            batch=int(batch),
            dtype=values.dtype,
            steps=values.steps * (2 if what == "evaluate" else 1),
        )
        for model in dict.fromkeys(values.models)
        for batch in dict.fromkeys(values.batches)
        for what in dict.fromkeys(expanded)
    ]


def forwards(what: str, steps: int) -> int:
    """The cost of one image in forwards; a gradient by images counts as one, one by weights and images as two.

    >>> [forwards(what, 10) for what in ("train", "evaluate", "apgd-ce", "fab-t", "square")]
    [26, 21, 22, 31, 11]
    """
    if what == "train":  # the attack, then a clean and an adversarial forward with all their gradients
        return 2 * steps + 2 * 3
    return {"evaluate": 2 * steps + 1, "fab-t": 3 * steps + 1, "square": steps + 1}.get(what, 2 * (steps + 1))


def row(case: Case, measured: Mapping[str, Measured], matrix_rate: float) -> dict[str, Any]:
    """A case's line of results.jsonl.

    Args:
      case: the measured work.
      measured: of each side, including "ours".
      matrix_rate: floating-point operations per second of a large matrix product in the case's dtype.
    """
    about = measured["ours"].about
    versions = {name: version for side in measured.values() for name, version in side.about["versions"].items()}
    per_image = about["forward_flops"] * forwards(case.what, case.steps)
    own_rate = statistics.median(measured["ours"].rates)
    return {
        **{name: about[name] for name in ("device", "started", "commit")},
        "versions": versions,
        "huge_pages": "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
        "what": case.what,
        "model": case.model,
        "batch": case.batch,
        "dtype": case.dtype,
        "steps": case.steps,
        "flops_per_image": per_image,
        "matrix_flops_per_second": matrix_rate,
        "sides": {name: _side(side, own_rate, per_image, matrix_rate) for name, side in measured.items()},
    }


def _side(side: Measured, own_rate: float, per_image: float, matrix_rate: float) -> dict[str, Any]:
    rate = statistics.median(side.rates)
    return {
        "images_per_second": {"median": rate, "min": min(side.rates), "max": max(side.rates), "rounds": side.rates},
        "ours_over_this": own_rate / rate,
        "compile_seconds": side.compile_seconds,
        "peak_memory_bytes": side.peak_memory,
        "flops_per_second": per_image * rate,
        "fraction_of_matrix_rate": per_image * rate / matrix_rate,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: one line per side of each row, then the accelerator's cases without a row."""
    names = ("what", "model", "batch", "dtype", "steps")
    on_accelerators = [row for row in rows if not row["device"].startswith(ours.CPU)]
    done = {tuple(row[name] for name in names) for row in on_accelerators}
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for result in rows:
        lines += _lines(result)
    for case in PLANNED:
        known = tuple(getattr(case, name) for name in names)
        if known not in done:
            cells = ["GPU", "", "", *map(str, known)]
            lines.append(f"| {' | '.join(cells)} |{' |' * (len(COLUMNS) - len(cells))}")
    return "\n".join(lines) + "\n"


def _lines(result: Mapping[str, Any]) -> list[str]:
    """A row's lines of the table, one per side."""
    lines = []
    for name, side in result["sides"].items():
        rate, memory = side["images_per_second"], side["peak_memory_bytes"]
        cells = [
            result["device"],
            result["started"][:10],
            result["versions"]["jax"],
            *(str(result[field]) for field in ("what", "model", "batch", "dtype", "steps")),
            name,
            f"{rate['median']:.4g}",
            f"{rate['min']:.4g}..{rate['max']:.4g}",
            str(len(rate["rounds"])),
            f"{side['ours_over_this']:.2f}",
            "" if side["compile_seconds"] is None else f"{side['compile_seconds']:.1f}",
            "" if memory is None else f"{memory / 2**20:.0f}",
            f"{side['flops_per_second'] / 1e12:.3g}",
            f"{100 * side['fraction_of_matrix_rate']:.1f}%",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a results.jsonl."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except json.JSONDecodeError as error:
        raise InputError(f"{path} has a line that is not JSON ({error}); remove it") from error
