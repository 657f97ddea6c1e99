"""Write encoded images in the formats that `opening` reads, without decoding them."""

import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from piat_jax.core.checks import InputError, check_choice, check_count
from piat_jax.data.records.examples import write_example
from piat_jax.data.records.opening import CLASS_NAMES
from piat_jax.data.tfrecord import MASK_DELTA

ROW_GROUP = 16
"""Number of rows that parquet reads together."""


class Encoded(NamedTuple):
    """An image file and its label."""

    data: bytes
    label: int
    suffix: str = ".jpg"
    name: str = ""  # of the file, without the suffix; if empty, its number is used


def write_split(
    folder: Path,
    kind: str,
    split: str,
    examples: Iterable[Encoded],
    *,
    class_names: Sequence[str],
    per_shard: int = 1000,
) -> int:
    """Write a split to a folder, in files with the split's name.

    Args:
      folder: created if it does not exist.
      kind: of `KINDS`.
      split: "train", "test" or "validation".
      examples: each is written before the next one is requested.
      class_names: names of the classes; for folders they must be sorted, as these are numbered by name.
      per_shard: examples per file, for formats with many examples in a file.

    Returns:
      The number of examples.

    Raises:
      InputError: the kind is unknown, or files of the split already exist.
    """
    check_choice("kind", kind, KINDS)
    check_count("per_shard", per_shard, 1)
    folder.mkdir(parents=True, exist_ok=True)
    if there := sorted(path.name for path in folder.glob(f"{split}*")):
        raise InputError(f"{folder} already holds {there[0]}; give a new folder")
    if kind == "folders":
        return _write_folders(folder / split, examples, class_names)
    (folder / CLASS_NAMES).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    count, shard = 0, list[Encoded]()
    paths: list[Path] = []

    def flush() -> None:
        paths.append(folder / f"{split}-{len(paths):05d}.partial")
        KINDS[kind](paths[-1], shard, class_names)  # type: ignore[misc]
        shard.clear()

    for example in examples:
        shard.append(example)
        count += 1
        if len(shard) == per_shard:
            flush()
    if shard:
        flush()
    for number, path in enumerate(paths):
        path.rename(folder / f"{split}-{number:05d}-of-{len(paths):05d}.{kind}")
    return count


def _write_folders(folder: Path, examples: Iterable[Encoded], class_names: Sequence[str]) -> int:
    count = 0
    for count, (data, label, suffix, name) in enumerate(examples, 1):
        place = folder / class_names[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name or f'{count:06d}'}{suffix}").write_bytes(data)
    return count


def _write_tar(path: Path, examples: Sequence[Encoded], class_names: Sequence[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for number, (data, label, suffix, name) in enumerate(examples):
            key = name or f"{number:06d}"
            for file, content in ((f"{key}{suffix}", data), (f"{key}.cls", str(label).encode())):
                member = tarfile.TarInfo(file)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _write_parquet(path: Path, examples: Sequence[Encoded], class_names: Sequence[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    described = {"info": {"features": {"label": {"names": list(class_names), "_type": "ClassLabel"}}}}
    images = [{"bytes": each.data, "path": each.name + each.suffix if each.name else None} for each in examples]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table(
        {"image": pyarrow.array(images, kind), "label": pyarrow.array([each.label for each in examples])}
    ).replace_schema_metadata({"huggingface": json.dumps(described)})
    pyarrow.parquet.write_table(
        table, path, row_group_size=ROW_GROUP, compression="none", use_dictionary=False, write_page_checksum=True
    )


def _serialized(example: Encoded) -> bytes:
    named: dict[str, bytes | int] = {"file_name": f"{example.name}{example.suffix}".encode()} if example.name else {}
    return write_example({"image": example.data, "label": example.label, **named})


def _write_array_record(path: Path, examples: Sequence[Encoded], class_names: Sequence[str]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    # Groups of one record, so that each record is read alone.
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for example in examples:
        writer.write(_serialized(example))
    writer.close()


def _write_tfrecord(path: Path, examples: Sequence[Encoded], class_names: Sequence[str]) -> None:
    import google_crc32c

    def checksum(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF)

    with path.open("wb") as file:
        for example in examples:
            record = _serialized(example)
            length = struct.pack("<Q", len(record))
            file.write(length + checksum(length) + record + checksum(record))


KINDS: dict[str, Callable[..., Any]] = {
    "folders": _write_folders,
    "tar": _write_tar,
    "parquet": _write_parquet,
    "array_record": _write_array_record,
    "tfrecord": _write_tfrecord,
}
"""Formats of encoded images. All except folders are files named SPLIT-00000-of-00001.KIND."""
