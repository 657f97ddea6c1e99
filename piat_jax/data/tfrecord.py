"""Read TFRecord files, the most common format of TFDS folders, without TensorFlow."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from piat_jax.core.checks import InputError

MASK_DELTA = 0xA282EAD8


def read_tfrecords(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Read the records of a file: length (uint64), its checksum (4 bytes), the bytes, their checksum (4 bytes).

    Raises:
      InputError: the file is missing, ends inside a record, or a checksum is wrong.
    """
    return (record for _, record in scan_tfrecords(path))


def scan_tfrecords(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """As `read_tfrecords`, each record with the offset of its first byte."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; prepare the data set again")
    # A length beyond the file's end must not make read() allocate that much memory.
    size = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            offset = file.tell()
            if offset + length + 4 > size:
                raise InputError(f"{path} ends inside a record; prepare the data set again")
            record = file.read(length)
            check_record(path, header[:8], header[8:])
            check_record(path, record, file.read(4))
            yield offset, record


def check_record(path: str | os.PathLike[str], data: bytes, checksum: bytes) -> None:
    """Raise InputError unless a masked CRC-32C, 4 bytes, matches the data."""
    try:
        import google_crc32c
    except ImportError as error:
        raise InputError(f"{path} needs google-crc32c; pip install 'piat_jax[data]'") from error
    crc = google_crc32c.value(data)
    masked = ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF
    if checksum != struct.pack("<I", masked):
        raise InputError(f"{path} has a record with a wrong checksum; prepare the data set again")
