"""TFRecord files without TensorFlow: what most people's TFDS folders hold."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from piat_jax.core.checks import InputError

MASK_DELTA = 0xA282EAD8


def read_tfrecords(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The records of a file: length (uint64), its checksum (4 bytes), that many bytes, their checksum (4 bytes).

    Raises:
      InputError: the file is missing, ends inside a record, or a checksum is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; prepare the data set again")
    try:
        import google_crc32c
    except ImportError as error:
        raise InputError(f"{path} needs google-crc32c; pip install 'piat_jax[data]'") from error

    def is_right(data: bytes, checksum: bytes) -> bool:
        crc = google_crc32c.value(data)
        masked = ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF
        return checksum == struct.pack("<I", masked)

    # A length beyond the file must not make read() allocate it.
    size = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if file.tell() + length + 4 > size:
                raise InputError(f"{path} ends inside a record; prepare the data set again")
            record = file.read(length)
            if not is_right(header[:8], header[8:]) or not is_right(record, file.read(4)):
                raise InputError(f"{path} has a record with a wrong checksum; prepare the data set again")
            yield record
