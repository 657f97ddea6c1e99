"""Parquet files in the format of the Hugging Face hub, read by row groups when an image is requested."""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.shards import check_different, check_shards
from piat_jax.data.encoded import first_line
from piat_jax.data.parquet import class_names, columns
from piat_jax.data.records.base import Records

PATH, NAME = "path", "file_name"
"""Names of the image column's field, and of the separate column, that hold file names."""
KEPT_GROUPS = 2
"""Number of row groups that a process keeps in memory."""


class ParquetRecords(Records):
    """The rows of parquet files, in order.

    Parquet cannot read a single row, only its row group: with row groups of 1,000 images, each image reads as many.
    Write files with a `row_group_size` of about 16, or use tar or array_record.

    Args:
      paths: the shards.

    Raises:
      InputError: a file is damaged, or lacks columns of images and labels.
    """

    kind = "parquet files with an image and a label"

    def __init__(self, paths: Sequence[Path]):
        check_shards(paths)
        check_different(paths)
        self.paths = [str(path) for path in paths]
        self.groups: list[tuple[int, int]] = []  # of each row group: its file, and its number in it
        self.starts: list[int] = []  # of each row group: its first row
        self.column = ""
        labels: list[np.ndarray] = []
        names: tuple[str, ...] = ()
        row = 0
        for number, path in enumerate(paths):
            file = _open(str(path))
            self.column, label = columns(path, file.schema_arrow)
            names = names or class_names(file.schema_arrow, label)
            try:
                read = file.read([label])[label].to_numpy()
            except Exception as error:  # Damaged files can raise almost any exception.
                raise InputError(f"{path} cannot be read ({first_line(error)}); download it again") from error
            if not np.issubdtype(read.dtype, np.integer):
                raise InputError(f"{path} has labels that are not integers; give one class index per image")
            labels.append(read)
            for group in range(file.num_row_groups):
                self.groups.append((number, group))
                self.starts.append(row)
                row += file.metadata.row_group(group).num_rows
        super().__init__(np.concatenate(labels), names, self.paths[0])
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._lock, self._kept = threading.Lock(), OrderedDict[int, Any]()

    def read(self, index: int) -> bytes:
        """The bytes of an image file."""
        number = bisect.bisect_right(self.starts, index) - 1
        with self._lock:
            rows = self._kept.pop(number, None)
            if rows is None:
                rows = self._read_group(number)
            self._kept[number] = rows
            while len(self._kept) > KEPT_GROUPS:
                self._kept.popitem(last=False)
        data = rows[index - self.starts[number]].as_py()
        data = data.get("bytes") if isinstance(data, dict) else data
        if data is None:
            raise InputError(f"{self.name(index)} has no image bytes; download the data set with its images embedded")
        return data

    def _read_group(self, number: int) -> Any:
        file, group = self.groups[number]
        try:
            return _open(self.paths[file]).read_row_group(group, [self.column])[self.column].combine_chunks()
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{self.paths[file]} cannot be read ({first_line(error)}); download it again") from error

    def file_names(self) -> list[str]:
        """Each image's `image.path`, or its value in the column `file_name`."""
        found: list[str | None] = []
        for path in self.paths:
            file = _open(path)
            image = file.schema_arrow.field(self.column).type
            inside = [image.field(number).name for number in range(image.num_fields)]
            ways = [
                [f"{self.column}.{PATH}"] if PATH in inside else [],
                [NAME] if NAME in file.schema_arrow.names else [],
            ]
            try:
                tables = [file.read(way).flatten() for way in ways if way]
            except Exception as error:  # Damaged files can raise almost any exception.
                raise InputError(f"{path} cannot be read ({first_line(error)}); download it again") from error
            columns = [table.column(0).to_pylist() for table in tables] or [[None] * file.metadata.num_rows]
            found += [next((name for name in names if name), None) for names in zip(*columns)]
        if not any(found):
            raise InputError(f"{self.paths[0]} has no file names; give {self.column}.{PATH}, or a column {NAME}")
        return [str(name or "") for name in found]

    def name(self, index: int) -> str:
        """The file and the row in it."""
        number = bisect.bisect_right(self.starts, index) - 1
        file, group = self.groups[number]
        return f"{self.paths[file]} row {index - self.starts[number - group]}"


def _open(path: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow; pip install 'piat_jax[data]'") from error
    try:
        # Not memory-mapped, so that a damaged file raises and does not crash the process. Checksums are verified.
        return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read as parquet ({first_line(error)}); download it again") from error
