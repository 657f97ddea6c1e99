"""Stopping on request: a run's position within an epoch, and stop signals."""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import jax

from piat_jax.core.multihost import any_of_all
from piat_jax.core.types import TrainState

Result = TypeVar("Result")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Position(NamedTuple):
    """A state's position within an epoch; a run resumes from it as if it had not been stopped."""

    epoch: int  # 1-based; if `state.epoch` has reached it, the epoch's training is done, but not its evaluation
    steps: int = 0  # steps done in this epoch, and so the position in its permutation
    counted: int = 0  # steps that were not skipped
    metrics: Mapping[str, float] = {}  # each metric's sum over the counted steps; its mean once training is done
    seconds: float = 0.0  # training time of these steps


class StopTraining(Exception):
    """Training was asked to stop; holds the state and its position in the epoch."""

    def __init__(self, state: TrainState, position: Position):
        super().__init__(f"stopped in epoch {position.epoch} after {position.steps} steps")
        self.state, self.position = state, position


class Interrupted(KeyboardInterrupt):
    """Raised inside interruptible functions; like Ctrl-C, it is not caught by `except Exception`."""


class StopSignals:
    """In this context, the first SIGTERM or Ctrl-C requests a stop, and the second ends the process at once.

    Use `requested` as `fit`'s `should_stop`. If several processes train together, a signal to one stops all.
    """

    def __init__(self) -> None:
        self._received = False
        self._interruptible = False
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        """Whether any process has received a signal; all processes must call it."""
        return any_of_all(self._received)

    def interruptible(self, run: Callable[..., Result]) -> Callable[..., Result]:
        """The same function, which raises `Interrupted` as soon as a signal arrives.

        Processes that work together do not start it after a signal, and leave it together where it calls `check`: a
        process that left alone would keep the others waiting.
        """

        def call(*arguments: Any) -> Result:
            try:
                self._interruptible = jax.process_count() == 1
                if self.requested():
                    raise Interrupted
                return run(*arguments)
            finally:
                self._interruptible = False

        return call

    def check(self) -> None:
        """Raise `Interrupted` if one of several processes has a signal; for one process `interruptible` does this."""
        if jax.process_count() > 1 and self.requested():
            raise Interrupted

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        # Not print: a handler may run in the middle of one.
        os.write(2, b"stopping: progress will be saved; the same signal again stops at once\n")
        if self._interruptible:
            raise Interrupted
