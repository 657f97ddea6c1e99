"""Processes that work together, each with devices of its own and all with the same files; alone, nothing waits here.

They run the same program and ask for the same compiled functions in the same order. Whatever happens in one of them
only (a signal, a file that is written) goes through this module, so that all go on alike.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from piat_jax.core.checks import InputError


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def any_of_all(flag: bool) -> bool:
    """Whether `flag` holds in any of the processes; all have to ask.

    >>> any_of_all(True), any_of_all(False)
    (True, False)
    """
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_first(number: int) -> int:
    """The first process's number, in all; all have to ask.

    >>> of_first(3)
    3
    """
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.array(number)))


def on_first(step: Callable[[], object]) -> None:
    """Run `step` in the first process alone, after all have come to it; they go on when it is done.

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
        raise failed or InputError("the first process cannot go on, and says why")
