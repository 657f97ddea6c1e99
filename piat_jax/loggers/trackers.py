"""A run's loggers, isolated: an exception in a logger, or a network that does not answer, cannot stop the run."""

import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError, check_choice
from piat_jax.loggers.base import LOGGERS, Logger, RunInfo

SECONDS = 60.0
"""Time limit for one call of a logger, after which it is turned off."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise InputError unless all names are loggers.

    >>> check_loggers(("tensorboard", "wandbb"))
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: log.to='wandbb' is unknown; did you mean 'wandb'?
    """
    for name in names:
        check_choice("log.to", name, LOGGERS)


def check_installed(names: Sequence[str]) -> None:
    """Raise InputError unless each logger's package is installed."""
    for name in names:
        package, extra = (getattr(LOGGERS[name], field, "") for field in ("package", "extra"))
        if package and importlib.util.find_spec(package) is None:
            fix = f"pip install 'piat_jax[{extra}]'" if extra else f"pip install {package}"
            raise InputError(f"log.to={name!r} needs the package {package}, which is not installed: {fix}")


class Trackers:
    """Several loggers as one, none of which can stop the run: a logger's first error becomes a note and turns it off.

    Args:
      names: from `LOGGERS`; () does nothing.
      info: of the run; its `note` is called with errors.
      seconds: time limit of one call.

    >>> from pathlib import Path
    >>> trackers = Trackers((), RunInfo(folder=Path("runs/x"), config={}))
    >>> bool(trackers), trackers.write({"epoch": 1}, 1)
    (False, None)
    """

    def __init__(self, names: Sequence[str], info: RunInfo, *, seconds: float = SECONDS):
        self.note, self.seconds = info.note, seconds
        self.on = {name: _Thread(name) for name in dict.fromkeys(names)}
        self.loggers: dict[str, Logger] = {}
        for name in tuple(self.on):
            self._call(name, "start", lambda name=name: self._start(name, info))

    def __bool__(self) -> bool:
        """Whether any logger is on."""
        return bool(self.on)

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """Call this method of all loggers."""
        self._all("write", dict(record), step)

    def images(self, name: str, image: np.ndarray, caption: str, step: int) -> None:
        """Call this method of all loggers."""
        self._all("images", name, image, caption, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Call this method of all loggers."""
        self._all("text", name, text, step)

    def close(self, *, finished: bool = True) -> None:
        """Close all loggers; afterwards all are off."""
        self._all("close", finished=finished)
        for name in tuple(self.on):
            self.on.pop(name).end()

    def _start(self, name: str, info: RunInfo) -> None:
        self.loggers[name] = LOGGERS[name]()
        self.loggers[name].start(info)

    def _all(self, method: str, *arguments: Any, **options: Any) -> None:
        for name in tuple(self.on):
            self._call(name, method, lambda name=name: getattr(self.loggers[name], method)(*arguments, **options))

    def _call(self, name: str, method: str, step: Callable[[], None]) -> None:
        waited = self.on[name].call(step)
        try:
            error = waited.exception(self.seconds)
        except TimeoutError:
            why = f"no answer in {self.seconds:g} seconds"
        else:
            if error is None:
                return
            why = f"{type(error).__name__}: {error}"
        self.on.pop(name).end()
        self.note(f"{name} is off from here on, training continues: {method}: {' '.join(why.split())}")


class _Thread:
    """A thread that makes calls in order; a daemon, so that a call that never ends does not keep the process alive."""

    def __init__(self, name: str):
        self.calls: queue.SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name=f"logger {name}", daemon=True).start()

    def call(self, step: Callable[[], None]) -> "Future[None]":
        future: Future[None] = Future()
        self.calls.put((future, step))
        return future

    def end(self) -> None:
        self.calls.put(None)

    def _serve(self) -> None:
        while call := self.calls.get():
            future, step = call
            try:
                step()
            except BaseException as error:  # SystemExit too, as it comes from the tracker, not the user
                future.set_exception(error)
            else:
                future.set_result(None)
