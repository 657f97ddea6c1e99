"""Implementations of one piece of work measured in turn (A B A B), each in a process of its own.

A process of its own gives each its thread pools, its device memory and a peak of its own; whoever is not due waits on a
pipe and takes nothing of the machine.
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
    """What is measured."""

    what: str  # "train", "evaluate", the name of an attack of AutoAttack, or "matmul", which has no model
    model: str = ""  # a name in ours.NETWORKS
    batch: int = 0  # images at once
    dtype: str = "float32"  # of activations
    steps: int = 0  # of the attack


class Work(NamedTuple):
    """A case as one side does it."""

    run: Callable[[int], None]  # does it so many times; returns when the device is done
    units: float  # images in one time; of "matmul" floating-point operations
    device_memory: Callable[[], int | None]  # the device's peak in bytes; None where it does not count
    about: Mapping[str, Any]  # versions, device, what else is known of the work


class Measured(NamedTuple):
    """What one side took."""

    rates: list[float]  # units per second of each round
    compile_seconds: float  # by how much the first time was longer than the second
    peak_memory: int | None  # bytes; see `_peak_growth`
    about: Mapping[str, Any]


Prepare = Callable[[Case], Work]
"""A function at the top of a module, which a fresh process can import."""


def measure(sides: Mapping[str, Prepare], case: Case, *, rounds: int, seconds: float) -> dict[str, Measured]:
    """Each side's rates at one case, after warming up; a side whose process fails is missing.

    Args:
      sides: by name, in the order in which they take turns.
      case: what they do.
      rounds: of each side.
      seconds: what a round takes at least: short work is repeated, and waited for once.
    """
    # All start at once, because imports take long; they warm up one after the other.
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
    """A process that answers questions."""

    def __init__(self, prepare: Prepare, case: Case, seconds: float):
        # Not forked: a copy of a process that has used JAX or PyTorch may hang.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, prepare, case, seconds), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, question: str) -> Any:
        """The answer; None from a process that has failed, which has said why on stderr."""
        try:
            self.connection.send(question)
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _serve(connection: Connection, prepare: Prepare, case: Case, seconds: float) -> None:
    """Warm up, run rounds, tell the peak of memory: in the order in which it is asked."""
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
    """Bytes: the device's own peak, else by how much the process's resident memory grew beyond what imports took."""
    on_device, after = work.device_memory(), _resident_peak()
    if on_device is not None or after is None or before is None:
        return on_device
    return after - before


def _resident_peak() -> int | None:
    """The most bytes of RAM that this program has held; None where there is no /proc.

    Unlike getrusage's number it starts anew with the program, and not with what its parent held.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(fields["VmHWM"].split()[0])
