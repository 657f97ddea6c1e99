"""The report of a plan: tables for a terminal, and JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from piat_jax.plan.estimate import Estimate, by_kind, dollars, kernel_seconds, loop_seconds, own_seconds
from piat_jax.plan.kernels import COLLECTIVES, Loop
from piat_jax.plan.planning import Plan
from piat_jax.plan.targets import GPU, TPU
from piat_jax.training.progress import duration

SAID = """\
"At least" is a lower bound, not a prediction. A kernel's time is its bytes divided by the memory's bandwidth, or the
operations of its convolutions and matrix products divided by the units' rate, whichever is longer; each operand is read
once and each result written once. The bound does not include launches, the distance of XLA's and cuDNN's kernels from
these rates, other arithmetic, savings by a cache, data that stays on the chip (a TPU's vector memory), the host, and
the time of collectives between devices. Use it to compare programs and devices."""
NEVER_NOTHING = 1e-9


def to_text(plan: Plan, *, price: float = 0.0, kinds: int = 0) -> str:
    """Format the plan as tables.

    Args:
      plan: the plan.
      price: dollars per device and hour; 0 shows no cost.
      kinds: number of kernel types to list for each part of a program.
    """
    parts = [_title(plan), _memory_table(plan.estimates)]
    if plan.batches:
        parts.append(_batch_table(plan))
    parts.append(_work_table(plan.estimates, kinds))
    parts.append(_stage_table(plan, price))
    findings = [*plan.notes, *_findings(plan)]
    parts += ["\n".join(f"note: {finding}" for finding in findings)] if findings else []
    return "\n\n".join([*parts, SAID])


def to_json(plan: Plan, *, price: float = 0.0) -> dict[str, Any]:
    """The same numbers: seconds, bytes, operations."""
    return {
        "jax": jax.__version__,
        "target": {
            "name": plan.target.name,
            "title": plan.target.title,
            "devices": plan.devices,
            "memory": plan.target.memory,
            "bandwidth": plan.target.bandwidth,
            "flops": dict(plan.target.flops),
        },
        "experiment": plan.experiment.plain(),
        "sizes": plan.sizes._asdict(),
        "parameters": plan.parameters,
        "programs": [_program(each) for each in plan.estimates],
        "batches": [{"batch": batch, **_program(train)} for batch, train in plan.batches],
        "stages": [
            {
                "name": stage.name,
                "at_least_seconds": stage.seconds,
                "how": stage.how,
                **({"dollars": dollars(stage.seconds, plan.devices, price)} if price else {}),
            }
            for stage in plan.stages
        ],
        "notes": [*plan.notes, *_findings(plan)],
    }


def _program(each: Estimate) -> dict[str, Any]:
    return {
        "name": each.name,
        "devices": each.devices,
        "examples": each.examples,
        "compile_seconds": round(each.compile_seconds, 1),
        "memory": {**each.memory._asdict(), "peak": each.memory.peak, "fits": each.fits},
        "at_least_seconds": each.step_seconds,
        "outside_at_least_seconds": each.outside_seconds,
        "may_end_early": each.ends_early,
        "parts": [
            {
                "part": label,
                "trips": loop.trips,
                "known": loop.known,
                "kernels": len(loop.kernels),
                "bytes": sum(kernel.moved for kernel in loop.kernels),
                "flops": sum(kernel.flops for kernel in loop.kernels),
                "convolution_seconds": sum(
                    kernel_seconds(kernel, each.target) for kernel in loop.kernels if kernel.is_convolution
                ),
                "collectives": collectives(loop),
                "layout_copies": sum(kernel.is_layout_copy for kernel in loop.kernels),
                "at_least_seconds": own_seconds(loop, each.target),
            }
            for label, _, loop in labelled(each)
        ],
    }


def collectives(loop: Loop) -> dict[str, list[float]]:
    """The number of collectives of each type in a loop, without inner loops, and the bytes that a device sends."""
    found: dict[str, list[float]] = {}
    for kernel in loop.kernels:
        if kernel.kind in COLLECTIVES:
            counted = found.setdefault(kernel.kind, [0, 0.0])
            counted[0] += 1
            counted[1] += kernel.sent
    return found


def labelled(each: Estimate) -> Iterator[tuple[str, int, Loop]]:
    """The parts of a program with name and depth; loops with a thousandth of the time or less are left out."""

    def walk(loop: Loop, depth: int) -> Iterator[tuple[str, int, Loop]]:
        if loop is each.root:
            label = "once a call" if each.steps else "call"
        elif loop is each.step:
            label = "step"
        else:
            label = "loop"
        yield label, depth, loop
        for inner in loop.loops:
            if loop_seconds(inner, each.target) * inner.trips > 1e-3 * loop_seconds(loop, each.target):
                yield from walk(inner, depth + 1)

    yield from walk(each.root, 0)


def _title(plan: Plan) -> str:
    experiment = plan.experiment
    return (
        f"{experiment.method}: {experiment.model.name} ({plan.parameters:,} parameters, {experiment.model.dtype}) on "
        f"{experiment.dataset.name} ({plan.sizes.train:,} images), batch {experiment.batch_size}, "
        f"{experiment.epochs} epochs, on {plan.devices} x {plan.target.title}"
    )


def _memory_table(estimates: Sequence[Estimate]) -> str:
    rows = [
        (
            each.name,
            f"{each.examples:,}",
            *(_megabytes(value) for value in each.memory[:3]),
            _megabytes(each.memory.aliased),
            _megabytes(each.memory.beside),
            _megabytes(each.memory.peak),
            f"{each.memory.peak / each.target.memory:.1%}" + ("" if each.fits else " does not fit"),
            duration(each.compile_seconds),
        )
        for each in estimates
    ]
    header = (
        *("MB on a device", "images", "arguments", "temporaries", "outputs", "aliased", "beside", "peak"),
        *("of its memory", "compiled in"),
    )
    return aligned(header, rows)


def _batch_table(plan: Plan) -> str:
    rows = [
        (
            f"{batch:,}",
            _megabytes(train.memory.peak),
            f"{train.memory.peak / plan.target.memory:.1%}",
            "yes" if train.fits else "no",
            _microseconds(train.step_seconds),
            f"{batch / max(train.step_seconds, NEVER_NOTHING):,.0f}",
        )
        for batch, train in plan.batches
    ]
    header = ("training at batch", "peak MB", "of its memory", "fits", "step at least us", "images/s at most")
    table = aligned(header, rows)
    fitting = [batch for batch, train in plan.batches if train.fits]
    return f"{table}\nlargest that fits, of those compiled: {max(fitting):,}" if fitting else table


def _work_table(estimates: Sequence[Estimate], kinds: int) -> str:
    on_tpu = any(each.target.platform == TPU for each in estimates)
    header = (
        *(
            "what a device does",
            "times",
            "operations" if on_tpu else "kernels",
            "GB",
            "GFLOP",
            "at least us",
            "convolutions us",
        ),
        *("collectives MB", "layout copies"),
    )
    rows = []
    for each in estimates:
        for label, depth, loop in labelled(each):
            sent = sum(size for _, size in collectives(loop).values())
            rows.append(
                (
                    f"{each.name}: {label}" if not depth else f"{'  ' * depth}{label}",
                    {"exactly": f"{loop.trips:,}", "at most": f"<= {loop.trips:,}"}.get(loop.known, ""),
                    f"{len(loop.kernels):,}",
                    f"{sum(kernel.moved for kernel in loop.kernels) / 1e9:,.3f}",
                    f"{sum(kernel.flops for kernel in loop.kernels) / 1e9:,.1f}",
                    _microseconds(own_seconds(loop, each.target)),
                    _microseconds(
                        sum(kernel_seconds(kernel, each.target) for kernel in loop.kernels if kernel.is_convolution)
                    ),
                    f"{sent / 1e6:,.1f}" if sent else "",
                    str(sum(kernel.is_layout_copy for kernel in loop.kernels) or ""),
                )
            )
            for kind, kernels, seconds in by_kind(loop, each.target)[:kinds]:
                rows.append(
                    (
                        f"{'  ' * (depth + 1)}. {kind}",
                        "",
                        f"{len(kernels):,}",
                        f"{sum(kernel.moved for kernel in kernels) / 1e9:,.3f}",
                        f"{sum(kernel.flops for kernel in kernels) / 1e9:,.1f}",
                        _microseconds(seconds),
                        *("", "", ""),
                    )
                )
        what = "step" if each.steps else "call"
        rate = each.examples / max(each.step_seconds, NEVER_NOTHING)
        rows.append(
            (
                f"  a {what} in all, at most {rate:,.0f} images/s",
                "",
                f"{each.step.total(lambda kernel: 1):,.0f}",
                f"{each.step.total(lambda kernel: kernel.moved) / 1e9:,.3f}",
                f"{each.step.total(lambda kernel: kernel.flops) / 1e9:,.1f}",
                _microseconds(each.step_seconds),
                *("", "", ""),
            )
        )
    used = [not column or any(row[column] for row in rows) for column in range(len(header))]
    header, *rows = ([cell for cell, is_used in zip(row, used) if is_used] for row in (header, *rows))
    return aligned(header, rows)


def _stage_table(plan: Plan, price: float) -> str:
    rows = [
        (
            stage.name,
            _long(stage.seconds),
            *([f"{dollars(stage.seconds, plan.devices, price):,.2f}"] if price else []),
            stage.how,
        )
        for stage in plan.stages
    ]
    total = sum(stage.seconds for stage in plan.stages)
    if len(rows) > 1:
        cost = [f"{dollars(total, plan.devices, price):,.2f}"] if price else []
        rows.append(("together", _long(total), *cost, ""))
    return aligned(("the run", "at least", *(["dollars"] if price else []), "counted as"), rows, left=("counted as",))


def _findings(plan: Plan) -> list[str]:
    """Conspicuous facts about the programs."""
    found = []
    for each in plan.estimates:
        for label, depth, loop in labelled(each):
            wide = [kernel for kernel in loop.kernels if kernel.is_convolution and kernel.rate != "bfloat16"]
            if each.name == "train" and wide and plan.experiment.model.dtype == "bfloat16":
                found.append(f"{each.name}, {label}: {len(wide)} convolutions are in float32, not in bfloat16")
            copies = [kernel for kernel in loop.kernels if kernel.is_layout_copy]
            if depth and copies:
                size = sum(kernel.moved for kernel in copies)
                found.append(f"{each.name}, {label}: {len(copies)} layout copies move {_megabytes(size)} MB per trip")
        if 0.75 * each.target.memory < each.memory.peak <= each.target.memory and each.target.platform == GPU:
            found.append(
                f"{each.name}: JAX takes three quarters of a GPU's memory by default; raise "
                "XLA_PYTHON_CLIENT_MEM_FRACTION"
            )
    return found


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()) -> str:
    """A table as text: the first column and those in `left` are left-aligned, the others right-aligned.

    >>> print(aligned(("a", "n"), [("x", "10"), ("long", "2")]))
    a      n
    x     10
    long   2
    """
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    to_left = [not column or name in left for column, name in enumerate(header)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if is_left else cell.rjust(w) for cell, w, is_left in zip(line, widths, to_left)
        ).rstrip()
        for line in lines
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}"


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}"


def _long(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2f}s"
