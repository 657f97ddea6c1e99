"""The base of all sources of encoded images: numbered images, with labels that are known before decoding."""

import os
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from piat_jax.core.checks import InputError

MOST_LABELS = 1 << 20
"""An upper limit of class indices; a larger number is not a label."""


class Records:
    """Encoded images and labels by number, as a `RandomAccessDataSource` of grain; built once, read by any process.

    No file stays open after a read, so that thousands of shards do not exceed a process's limit of open files.

    Args:
      labels: `[N]`, class indices from 0.
      class_names: names of the classes, or () if the files do not have them.
      where: the folder or pattern of the files.

    Raises:
      InputError: there are no images, or labels are not class indices.
    """

    kind: ClassVar[str] = ""
    """The format's description in messages."""
    in_class_folders: ClassVar[bool] = False
    """Whether the files' names begin with their class."""

    def __init__(self, labels: Sequence[int] | np.ndarray, class_names: Sequence[str], where: str):
        wide = np.asarray(labels)
        if not wide.size:
            raise InputError(f"{where} holds no image; give {self.kind}")
        if not np.issubdtype(wide.dtype, np.integer):
            raise InputError(f"{where} has labels of type {wide.dtype}; give whole numbers, one class index per image")
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
          InputError: the file cannot be read.
        """
        raise NotImplementedError

    def name(self, index: int) -> str:
        """An image's name in messages: its file, and its place in the file."""
        raise NotImplementedError

    def file_names(self) -> list[str]:
        """The names of the image files, in order, with or without folders; empty where a name was not kept.

        Raises:
          InputError: none of the images has a name.
        """
        raise NotImplementedError

    @property
    def hidden(self) -> bool:
        """Whether the labels are withheld, as for ImageNet's test images."""
        return bool(self.labels.max() < 0)


def read_bytes(path: str, offset: int = 0, size: int = -1) -> bytes:
    """Read `size` bytes of a file from `offset` on; -1 = all.

    Raises:
      InputError: the file cannot be read, or ends too early.
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
        raise InputError(f"{path} is {size} bytes shorter than when it was opened; copy it again")
    return b"".join(parts)
