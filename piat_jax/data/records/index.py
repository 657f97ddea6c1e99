"""What reading all records of some files has found out of them: kept, as ImageNet's are 140 GB to read."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from piat_jax.data.search_paths import cache_folder

FOLDER = "records"
VERSION = 1


class Index(NamedTuple):
    """Labels, names and places of N records."""

    labels: np.ndarray  # [N] int64
    names: np.ndarray  # [N] bytes, of the image files; empty where a record does not say
    places: np.ndarray  # [N, 3] int64: shard, offset, size; [0, 3] where the files have an index of their own


def cached_index(kind: str, paths: Sequence[str], read: Callable[[], Index]) -> Index:
    """The index of some files: as it was kept in the cache folder, else read and kept there.

    It is another one where the paths, sizes or times of the files are. What is damaged is read again; where nothing can
    be written, nothing is kept. Several processes may do this at once.

    Args:
      kind: of the files.
      paths: of them, in order.
      read: reads the files.
    """
    full = [os.path.abspath(path) for path in paths]
    name = hashlib.sha256("\n".join((kind, *full)).encode(errors="surrogateescape")).hexdigest()[:32]
    path = cache_folder() / FOLDER / f"{name}.npz"
    stamp = _stamp(full)
    found = _load(path, stamp)
    if found is None:
        found = read()
        if np.array_equal(stamp, _stamp(full)):  # else they were being written
            _save(path, stamp, found)
    return found


def _stamp(paths: Sequence[str]) -> np.ndarray:
    """Version, sizes and times, `[1 + 2 F]` int64."""
    told = [os.stat(path) for path in paths]
    return np.array([VERSION, *(each.st_size for each in told), *(each.st_mtime_ns for each in told)], np.int64)


def _load(path: Path, stamp: np.ndarray) -> Index | None:
    """The index in a file, whose checksums are verified; None where it is none of these files."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            found = Index(*(stored[name] for name in Index._fields))
    except Exception:  # a damaged file raises nearly anything
        return None
    count = len(found.labels)
    kinds = [array.dtype.kind for array in found]
    shapes = [array.shape for array in found]
    good = kinds == ["i", "S", "i"] and shapes[:2] == [(count,)] * 2 and shapes[2] in ((count, 3), (0, 3))
    return found if good else None


def _save(path: Path, stamp: np.ndarray, index: Index) -> None:
    """Write it beside, and put it in its place as a whole."""
    arrays: dict[str, Any] = {"stamp": stamp, **index._asdict()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            try:
                np.savez(file, **arrays)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise
