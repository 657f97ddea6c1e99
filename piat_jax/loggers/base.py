"""What a logger is, and the table of those that have a name."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.registry import Registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a logger is told of its run."""

    folder: Path  # of the run
    config: Mapping[str, Any]  # every field of its experiment, groups as mappings
    resumed: bool = False
    epochs_done: int = 0  # records up to this epoch are there already
    note: Callable[[str], None] = lambda text: None  # what the user is to be told, a line


class Logger:
    """Where the numbers and images of a run go; nothing here does anything, so a logger has the methods it needs.

    It is made without arguments. All methods are called from one thread that is not the main one, in this order:
    `start`, any number of the next three, `close`. What a method raises turns this logger off and leaves the run alone.

    Attributes:
      package: what has to be installed, as it is imported; "" is nothing.
      extra: of piat_jax, which installs it.

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
        """The run begins, or goes on."""

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """An epoch is over.

        Args:
          record: a line of metrics.jsonl: epoch, losses, accuracies as shares, seconds.
          step: the epoch, 1-based.
        """

    def images(self, name: str, image: np.ndarray, caption: str, step: int) -> None:
        """A picture of several images.

        Args:
          name: what it is of.
          image: `[H, W, C]` uint8, C being 1 or 3.
          caption: a line.
          step: the epoch.
        """

    def text(self, name: str, text: str, step: int) -> None:
        """Something in words, such as why the run was stopped."""

    def close(self, *, finished: bool = True) -> None:
        """The run is over; `finished` where all its epochs are done."""


LOGGERS: Registry[Callable[[], Logger]] = Registry("logger")
"""Every logger that `log.to` may name."""
logger = LOGGERS.register
"""Decorator of a class: `@logger("mine", summary="...")`; `log.to` may then name it."""


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by the names that trackers group them by; epoch is their axis and left out.

    >>> numbers({"epoch": 3, "step": 30, "train_loss": 2.0, "test_pgd20": 0.5, "validation_clean": 0.75})
    {'step': 30, 'train/loss': 2.0, 'test/pgd20': 0.5, 'validation/clean': 0.75}
    """
    found = {}
    for name, value in record.items():
        if name != "epoch" and isinstance(value, (int, float)) and np.isfinite(value):
            group, _, rest = name.partition("_")
            found[f"{group}/{rest}" if rest and group in ("train", "test", "validation") else name] = value
    return found
