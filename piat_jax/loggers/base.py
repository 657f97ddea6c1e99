"""The base class of loggers, and the registry of named loggers."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.registry import Registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The description of a run for its loggers."""

    folder: Path  # the run's folder
    config: Mapping[str, Any]  # every field of its experiment, groups as mappings
    resumed: bool = False
    epochs_done: int = 0  # records up to this epoch already exist
    note: Callable[[str], None] = lambda text: None  # shows a line to the user


class Logger:
    """The base of loggers for a run's numbers and images; all methods do nothing, so a logger overrides what it needs.

    A logger is created without arguments. All methods are called from one thread, not the main one, in this order:
    `start`, any number of the next three, `close`. An exception turns the logger off and does not affect the run.

    Attributes:
      package: the import name of a required package; "" = none.
      extra: the extra of piat_jax that installs this package.

    >>> from piat_jax.loggers import LOGGERS, logger
    >>> @logger("printed", summary="Prints the loss.")
    ... class Printed(Logger):
    ...     def write(self, record, step):
    ...         print(step, record["train_loss"])
    >>> LOGGERS["printed"]().write({"train_loss": 2.5}, 1)
    1 2.5
    >>> del LOGGERS["printed"]
    """

    package = ""
    extra = ""

    def start(self, info: RunInfo) -> None:
        """Called when the run begins or resumes."""

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """Called after an epoch.

        Args:
          record: a line of metrics.jsonl: epoch, losses, accuracies in [0, 1], seconds.
          step: the epoch, 1-based.
        """

    def images(self, name: str, image: np.ndarray, caption: str, step: int) -> None:
        """Called with a picture of several images.

        Args:
          name: the picture's name.
          image: `[H, W, C]` uint8, C is 1 or 3.
          caption: one line.
          step: the epoch.
        """

    def text(self, name: str, text: str, step: int) -> None:
        """Called with a text, such as the reason why the run stopped."""

    def close(self, *, finished: bool = True) -> None:
        """Called at the end of the run; `finished` if all epochs are done."""


LOGGERS: Registry[Callable[[], Logger]] = Registry("logger")
"""Every logger that `log.to` may name."""
logger = LOGGERS.register
"""Decorator of a class: `@logger("mine", summary="...")`; `log.to` may then name it."""


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """A record's numbers under names that trackers can group; the epoch is their axis and left out.

    >>> numbers({"epoch": 3, "step": 30, "train_loss": 2.0, "test_pgd20": 0.5, "validation_clean": 0.75})
    {'step': 30, 'train/loss': 2.0, 'test/pgd20': 0.5, 'validation/clean': 0.75}
    """
    found = {}
    for name, value in record.items():
        if name != "epoch" and isinstance(value, (int, float)) and np.isfinite(value):
            group, _, rest = name.partition("_")
            found[f"{group}/{rest}" if rest and group in ("train", "test", "validation") else name] = value
    return found
