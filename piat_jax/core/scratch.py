"""Large arrays that are written once and read often: in memory, or in a file that disappears with the process."""

import contextlib
import errno
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.memory import in_units

IN_MEMORY_BYTES = 1 << 30
"""The largest array to keep in memory; larger arrays are mapped from a temporary file."""


def scratch(what: str, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of zeros to fill, in memory up to `IN_MEMORY_BYTES`, else mapped from a temporary file.

    The file is in $TMPDIR. It has no name, so it disappears when the process ends, however it ends.

    Args:
      what: the array's content, for the message.
      shape: of the array.
      dtype: of the array.

    Raises:
      InputError: the disk has too little room; this is checked before anything is written.

    >>> scratch("two images", (2, 4, 4, 3), np.uint8).shape
    (2, 4, 4, 3)
    """
    count = math.prod(shape) * np.dtype(dtype).itemsize
    if count <= IN_MEMORY_BYTES:
        return np.zeros(shape, dtype)
    folder = tempfile.gettempdir()
    try:
        if count > (free := shutil.disk_usage(folder).free):
            raise _too_small(what, count, folder, free)
        with tempfile.TemporaryFile(dir=folder) as file:
            with contextlib.suppress(AttributeError):  # as on macOS and Windows
                try:
                    # Allocate now: a full disk would kill the process while filling the array.
                    os.posix_fallocate(file.fileno(), 0, count)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                        raise _too_small(what, count, folder, shutil.disk_usage(folder).free) from error
            return np.memmap(file, dtype, "w+", shape=tuple(shape))
    except OSError as error:
        raise InputError(
            f"{what} take {in_units(count)}, and {folder} cannot hold a temporary file ({error.strerror or error}); "
            "give another folder in the variable TMPDIR"
        ) from error


def _too_small(what: str, count: int, folder: str, free: int) -> InputError:
    return InputError(
        f"{what} take {in_units(count)}, but {folder} has {in_units(free)} free; give a folder with more room in "
        "the variable TMPDIR, or use fewer"
    )
