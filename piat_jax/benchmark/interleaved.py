"""Measure implementations of the same work in turn (A B A B), each in a separate process.

Separate processes have separate thread pools, device memory and memory peaks. A process whose turn it is not waits on a
pipe and uses no resources.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """The work that is measured."""

    what: str  # "train", "evaluate", the name of an attack of AutoAttack, or "matmul", which has no model
    model: str = ""  # a name in ours.NETWORKS
    batch: int = 0  # batch size
    dtype: str = "float32"  # of activations
    steps: int = 0  # of the attack


class Work(NamedTuple):
    """A case as implemented by one side."""

    run: Callable[[int], None]  # does the work this many times; returns when the device is done
    units: float  # images per time; for "matmul" floating-point operations
    device_memory: Callable[[], int | None]  # the device's peak in bytes; None if the device does not count it
    about: Mapping[str, Any]  # versions, device, and other facts


class Measured(NamedTuple):
    """The measurements of one side."""

    rates: list[float]  # units per second of each round
    compile_seconds: float  # the first time minus the second
    peak_memory: int | None  # bytes; see `_peak_growth`
    about: Mapping[str, Any]


Prepare = Callable[[Case], Work]
"""A module-level function, which a new process can import."""


def measure(sides: Mapping[str, Prepare], case: Case, *, rounds: int, seconds: float) -> dict[str, Measured]:
    """Measure each side's rates at one case, after a warm-up; a side whose process fails is missing.

    Args:
      sides: by name, in the order in which they take turns.
      case: the work.
      rounds: number of rounds of each side.
      seconds: minimum length of a round: short work is repeated, with one wait at the end.
    """
    # All start together, because imports take long; they warm up in turn.
    workers = {name: _Worker(prepare, case, seconds) for name, prepare in sides.items()}
    try:
        ready = {name: answer for name, worker in workers.items() if (answer := worker.ask("prepare")) is not None}
        rates: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(rounds):
            for name in rates:
                rates[name].append(workers[name].ask("round"))
        return {
            name: Measured(rates[name], answer["compile_seconds"], workers[name].ask("memory"), answer["about"])
            for name, answer in ready.items()
            if None not in rates[name]
        }
    finally:
        for worker in workers.values():
            worker.stop()


class _Worker:
    """A process that answers requests."""

    def __init__(self, prepare: Prepare, case: Case, seconds: float):
        # Not forked, as a copy of a process that has used JAX or PyTorch may hang.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, prepare, case, seconds), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, question: str) -> Any:
        """The answer; None from a failed process, which has printed the reason on stderr."""
        try:
            self.connection.send(question)
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def stop(self) -> None:
        """End the process, even if it is busy."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _serve(connection: Connection, prepare: Prepare, case: Case, seconds: float) -> None:
    """Warm up, run rounds and report the memory peak, in the order of the requests."""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        connection.recv()
        before = _resident_peak()
        work = prepare(case)
        first, second = (_seconds(work, 1) for _ in range(2))
        times = max(math.ceil(seconds / second), 1)
        connection.send({"compile_seconds": max(first - second, 0.0), "about": dict(work.about)})
        while connection.recv() == "round":
            connection.send(times * work.units / _seconds(work, times))
        connection.send(_peak_growth(work, before))


def _seconds(work: Work, times: int) -> float:
    began = time.perf_counter()
    work.run(times)
    return time.perf_counter() - began


def _peak_growth(work: Work, before: int | None) -> int | None:
    """Bytes: the device's peak, else the growth of the process's resident memory since the imports."""
    on_device, after = work.device_memory(), _resident_peak()
    if on_device is not None or after is None or before is None:
        return on_device
    return after - before


def _resident_peak() -> int | None:
    """The process's peak of resident memory in bytes; None without /proc.

    Unlike getrusage's number, it does not include the parent's peak.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(fields["VmHWM"].split()[0])
