"""Stopping on request: where in an epoch a run stood, and the signals that ask for it."""

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
    """Where in an epoch a state is from; with it a run goes on as if it had not been stopped."""

    epoch: int  # 1-based; the epoch's training is over if `state.epoch` has reached it, its evaluation is not
    steps: int = 0  # done in this epoch, and so how far into its permutation
    counted: int = 0  # those of them that were not skipped
    metrics: Mapping[str, float] = {}  # each metric's sum over these; once the training is over its mean
    seconds: float = 0.0  # spent on them


class StopTraining(Exception):
    """Training was asked to stop: the state, and where in its epoch it is."""

    def __init__(self, state: TrainState, position: Position):
        super().__init__(f"stopped in epoch {position.epoch} after {position.steps} steps")
        self.state, self.position = state, position


class Interrupted(KeyboardInterrupt):
    """Raised inside of what may be cut off; as Ctrl-C, it is nothing that `except Exception` catches."""


class StopSignals:
    """Within this context the first SIGTERM or Ctrl-C is a request to stop, and the second ends the process at once.

    `requested` is for `fit`'s `should_stop`. Of several processes that train together a signal to one stops all.
    """

    def __init__(self) -> None:
        self._received = False
        self._interruptible = False
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        """Whether a signal has come, to whichever of the processes; all have to ask."""
        return any_of_all(self._received)

    def interruptible(self, run: Callable[..., Result]) -> Callable[..., Result]:
        """The same function, left with `Interrupted` as soon as a signal comes.

        Processes that work together do not begin it, and leave it together, where it calls `check`: one that left by
        itself would keep the others waiting.
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
        """Raise `Interrupted` if a signal has come to one of several processes; alone, `interruptible` does it."""
        if jax.process_count() > 1 and self.requested():
            raise Interrupted

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python takes no handlers elsewhere
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
        os.write(2, b"stopping: what is done will be saved; the same signal again stops at once\n")
        if self._interruptible:
            raise Interrupted
