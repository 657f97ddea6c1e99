"""TFRecord files without TensorFlow: what most people's TFDS folders hold."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from piat_jax.core.checks import InputError


def read_tfrecords(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The records of a file: length (uint64), its checksum (4 bytes), that many bytes, their checksum (4 bytes).

    The checksums are not verified: CRC-32C would be slow in Python, and images carry their own.

    Raises:
      InputError: the file is missing or ends inside a record.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; prepare the data set again")
    # A length beyond the file must not make read() allocate it.
    size = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if file.tell() + length + 4 > size:
                raise InputError(f"{path} ends inside a record; prepare the data set again")
            yield file.read(length)
            file.read(4)
