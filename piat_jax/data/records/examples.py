"""Files of tf.train.Example, array_record or tfrecord, as written by TFDS; read without TFDS and TensorFlow."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.shards import check_different, check_shards
from piat_jax.data.encoded import first_line
from piat_jax.data.records.base import Records, read_bytes
from piat_jax.data.records.index import Index, cached_index
from piat_jax.data.tfrecord import check_record, scan_tfrecords

IMAGES = ("image", "image/encoded")
LABELS = ("label", "image/class/label")
NAMES = ("file_name", "image/filename")
BLOCK = 64
"""Number of records that are read together to collect their labels."""


class _Examples(Records):
    """The base of both formats, with a cached index, since building it reads all records."""

    form: ClassVar[str] = ""
    paths: list[str]

    def _index(self) -> Index:
        return cached_index(self.form, self.paths, self._checked)

    def _checked(self) -> Index:
        """The index, after a check that the shards are complete and distinct; shards of equal size are compared."""
        paths = [Path(path) for path in self.paths]
        check_shards(paths)
        check_different(paths)
        return self._read_index()

    def _read_index(self) -> Index:
        raise NotImplementedError

    def file_names(self) -> list[str]:
        """The examples' feature file_name or image/filename."""
        names = self._index().names
        if not (names != b"").any():
            raise InputError(f"{self.paths[0]} has no file names; give them as {' or '.join(NAMES)}")
        return [name.decode(errors="replace") for name in names.tolist()]


class ArrayRecords(_Examples):
    """The examples in array_record files, in order.

    Args:
      paths: the shards.
      class_names: of the classes, or ().

    Raises:
      InputError: a file is damaged, or an example lacks image or label.
    """

    kind = "array_record files of tf.train.Example"
    form = "array_record"

    def __init__(self, paths: Sequence[Path], class_names: Sequence[str] = ()):
        self.paths = [str(path) for path in paths]
        try:
            from grain.sources import ArrayRecordDataSource
        except ImportError as error:
            raise InputError(f"{paths[0]} needs grain; pip install 'piat_jax[data]'") from error
        try:
            self.source: Any = ArrayRecordDataSource(self.paths)
            labels = self._index().labels
        except InputError:
            raise
        except Exception as error:  # Damaged files can raise almost any exception.
            raise InputError(
                f"{paths[0]} cannot be read as array_record ({first_line(error)}); copy it again"
            ) from error
        super().__init__(labels, class_names, self.paths[0])

    def _read_index(self) -> Index:
        labels, names = [], []
        for start in range(0, len(self.source), BLOCK):
            which = range(start, min(start + BLOCK, len(self.source)))
            for index, record in zip(which, self.source.__getitems__(which)):
                _, label, name = split(self.name(index), record)
                labels.append(label)
                names.append(name)
        return _index_of(labels, names, [])

    def read(self, index: int) -> bytes:
        """The bytes of an image file."""
        try:
            record = self.source[index]
        except Exception as error:
            raise InputError(f"{self.name(index)} cannot be read ({first_line(error)}); copy it again") from error
        return split(self.name(index), record)[0]

    def name(self, index: int) -> str:
        """The first file, and the record's number over all files."""
        return f"{self.paths[0]} record {index}"


class TfRecords(_Examples):
    """The examples in tfrecord files, in order; each read verifies the checksums.

    Args:
      paths: the shards.
      class_names: of the classes, or ().

    Raises:
      InputError: a file is damaged, or an example lacks image or label.
    """

    kind = "tfrecord files of tf.train.Example"
    form = "tfrecord"

    def __init__(self, paths: Sequence[Path], class_names: Sequence[str] = ()):
        self.paths = [str(path) for path in paths]
        labels, _, self.places = self._index()
        super().__init__(labels, class_names, self.paths[0])

    def _read_index(self) -> Index:
        places, labels, names = [], [], []
        for shard, path in enumerate(self.paths):
            for number, (offset, record) in enumerate(scan_tfrecords(path)):
                _, label, name = split(f"{path} record {number}", record)
                places.append((shard, offset, len(record)))
                labels.append(label)
                names.append(name)
        return _index_of(labels, names, places)

    def read(self, index: int) -> bytes:
        """The bytes of an image file."""
        shard, offset, size = self.places[index].tolist()
        data = read_bytes(self.paths[shard], offset, size + 4)
        check_record(self.paths[shard], data[:size], data[size:])
        return split(self.name(index), data[:size])[0]

    def name(self, index: int) -> str:
        """The file and the byte offset in it."""
        shard, offset, _ = self.places[index].tolist()
        return f"{self.paths[shard]} at byte {offset}"


def _index_of(labels: list[int], names: list[bytes], places: list[tuple[int, int, int]]) -> Index:
    return Index(np.array(labels, np.int64), np.array(names, np.bytes_), np.array(places, np.int64).reshape(-1, 3))


def split(name: str, record: bytes) -> tuple[bytes, int, bytes]:
    """The encoded image, the label, and the file's name or b"" in a serialized tf.train.Example.

    Raises:
      InputError: the record is not a tf.train.Example, or lacks image or label.
    """
    try:
        features = parse_example(record)
    except (IndexError, KeyError, ValueError) as error:
        raise InputError(f"{name} is not a tf.train.Example; give files as written by TFDS") from error
    image = next((features[key] for key in IMAGES if features.get(key)), None)
    label = next((features[key] for key in LABELS if features.get(key)), None)
    if image is None or label is None or not isinstance(image[0], bytes) or not isinstance(label[0], int):
        raise InputError(
            f"{name} has features {', '.join(sorted(features)) or 'none'}; give an encoded image as "
            f"{' or '.join(IMAGES)}, and a whole number as {' or '.join(LABELS)}"
        )
    file = next((features[key][0] for key in NAMES if features.get(key)), b"")
    return image[0], label[0], file if isinstance(file, bytes) else b""


def parse_example(record: bytes) -> dict[str, list[Any]]:
    """Parse the features of a serialized tf.train.Example: lists of bytes or of whole numbers; floats are left out.

    >>> parse_example(write_example({"image": b"abc", "label": -1}))
    {'image': [b'abc'], 'label': [-1]}
    """
    found: dict[str, list[Any]] = {}
    for _, features in _fields(record, {1}):
        for _, entry in _fields(features, {1}):
            parts = dict(_fields(entry, {1, 2}))
            values: list[Any] = []
            for kind, content in _fields(parts.get(2, b""), {1, 2, 3}):
                if kind == 1:
                    values += [bytes(value) for _, value in _fields(content, {1})]
                elif kind == 3:
                    values += [number for _, value in _fields(content, {1}) for number in _numbers(value)]
            found[bytes(parts[1]).decode()] = values
    return found


def write_example(features: dict[str, bytes | int]) -> bytes:
    """Serialize a tf.train.Example, the inverse of `parse_example` for one value per feature."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(content)) + content

    entries = b""
    for name, value in features.items():
        feature = field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, _varint(value)))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def _fields(message: bytes | memoryview | int, wanted: set[int]) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer: number, and bytes or a whole number."""
    if isinstance(message, int):
        raise ValueError("a number instead of a message")
    view, at = memoryview(message), 0
    while at < len(view):
        tag, at = _read_varint(view, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _read_varint(view, at)
        elif wire in (1, 5):
            value, at = 0, at + (8 if wire == 1 else 4)
        elif wire == 2:
            length, at = _read_varint(view, at)
            if at + length > len(view):
                raise ValueError("the record ends inside a field")
            value, at = view[at : at + length], at + length
        else:
            raise ValueError(f"wire type {wire}")
        if number in wanted:
            yield number, value


def _numbers(value: memoryview | int) -> Iterator[int]:
    """The whole numbers of one field, packed or not."""
    if isinstance(value, int):
        yield _signed(value)
        return
    at = 0
    while at < len(value):
        number, at = _read_varint(value, at)
        yield _signed(number)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number with more than 64 bits")


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
