"""Cooperating processes, each with its own devices and all with the same files; a single process never waits here.

The processes run the same program and call the same compiled functions in the same order. Events in only one process
(a signal, writing a file) go through this module, so that all processes continue alike.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from piat_jax.core.checks import InputError


def is_first() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def any_of_all(flag: bool) -> bool:
    """Whether `flag` holds in any process; all processes must call this.

    >>> any_of_all(True), any_of_all(False)
    (True, False)
    """
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_first(number: int) -> int:
    """The first process's number, in all processes; all processes must call this.

    >>> of_first(3)
    3
    """
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.array(number)))


def on_first(step: Callable[[], object]) -> None:
    """Run `step` only in the first process, once all processes have called this; the others wait until it is done.

    Raises:
      InputError: in every process, if `step` raised it in the first.

    >>> on_first(lambda: print("once"))
    once
    """
    any_of_all(False)
    failed = None
    if is_first():
        try:
            step()
        except InputError as error:
            failed = error
    if any_of_all(failed is not None):
        raise failed or InputError("the first process has stopped with an error; see its message")
