"""What every source of encoded images is: numbered, with labels that are known before anything is decoded."""

import os
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from piat_jax.core.checks import InputError

MOST_LABELS = 1 << 20
"""More classes than anybody has: what is above is no label."""


class Records:
    """Encoded images and their labels by number, as grain's `RandomAccessDataSource`; made once, read by any process.

    Reading keeps no file open, so that thousands of shards do not use up a process's files.

    Args:
      labels: `[N]`, class indices from 0.
      class_names: names of the classes, or () where the files do not tell.
      where: the folder or pattern they were found by.

    Raises:
      InputError: nothing is there, or labels that are no class indices.
    """

    kind: ClassVar[str] = ""
    """What such files are called in messages."""
    in_class_folders: ClassVar[bool] = False
    """Whether the files' names begin with their class."""

    def __init__(self, labels: Sequence[int] | np.ndarray, class_names: Sequence[str], where: str):
        wide = np.asarray(labels)
        if not wide.size:
            raise InputError(f"{where} holds no image; give {self.kind} with some")
        if not np.issubdtype(wide.dtype, np.integer):
            raise InputError(f"{where} has labels of type {wide.dtype}; give whole numbers, one class index an image")
        if wide.max() >= MOST_LABELS:
            raise InputError(f"{where} has label {wide.max()}; give class indices from 0, without gaps")
        self.labels = wide.clip(-1).astype(np.int32)
        self.class_names = tuple(class_names)
        self.where = where

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self.read(index), int(self.labels[index])

    def read(self, index: int) -> bytes:
        """The bytes of an image file.

        Raises:
          InputError: they cannot be read.
        """
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What an image is called in messages: its file, and its place in it."""
        raise NotImplementedError

    def file_names(self) -> list[str]:
        """What the image files are called, in order, with or without folders; empty where that was not kept.

        Raises:
          InputError: none of them has a name.
        """
        raise NotImplementedError

    @property
    def hidden(self) -> bool:
        """Whether the labels are withheld, as those of ImageNet's test images are."""
        return bool(self.labels.max() < 0)


def read_bytes(path: str, offset: int = 0, size: int = -1) -> bytes:
    """Some bytes of a file; -1 is all.

    Raises:
      InputError: the file cannot be read, or ends before.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            if size < 0:
                size = os.fstat(file.fileno()).st_size - offset
            file.seek(offset)
            parts = []
            while size and (part := file.read(size)):
                parts.append(part)
                size -= len(part)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if size:
        raise InputError(f"{path} is {size} bytes shorter than it was when it was opened; copy it again")
    return b"".join(parts)
