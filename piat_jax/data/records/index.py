"""The index of record files, which is cached because building it reads all records (ImageNet: 140 GB)."""

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
    names: np.ndarray  # [N] bytes, of the image files; empty if a record has none
    places: np.ndarray  # [N, 3] int64: shard, offset, size; [0, 3] if the files have an index themselves


def cached_index(kind: str, paths: Sequence[str], read: Callable[[], Index]) -> Index:
    """The index of some files, from the cache folder; if it is not there, it is built and cached.

    Changed paths, sizes or times of the files lead to a new index. A damaged index is built again; if the folder cannot
    be written, nothing is cached. Several processes may call this at the same time.

    Args:
      kind: the files' format.
      paths: the files, in order.
      read: reads the files and builds the index.
    """
    full = [os.path.abspath(path) for path in paths]
    name = hashlib.sha256("\n".join((kind, *full)).encode(errors="surrogateescape")).hexdigest()[:32]
    path = cache_folder() / FOLDER / f"{name}.npz"
    stamp = _stamp(full)
    found = _load(path, stamp)
    if found is None:
        found = read()
        if np.array_equal(stamp, _stamp(full)):  # else the files changed meanwhile
            _save(path, stamp, found)
    return found


def _stamp(paths: Sequence[str]) -> np.ndarray:
    """Version, sizes and times, `[1 + 2 F]` int64."""
    told = [os.stat(path) for path in paths]
    return np.array([VERSION, *(each.st_size for each in told), *(each.st_mtime_ns for each in told)], np.int64)


def _load(path: Path, stamp: np.ndarray) -> Index | None:
    """Load an index and verify its checksums; None if it belongs to other files."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            found = Index(*(stored[name] for name in Index._fields))
    except Exception:  # a damaged file can raise almost any exception
        return None
    count = len(found.labels)
    kinds = [array.dtype.kind for array in found]
    shapes = [array.shape for array in found]
    good = kinds == ["i", "S", "i"] and shapes[:2] == [(count,)] * 2 and shapes[2] in ((count, 3), (0, 3))
    return found if good else None


def _save(path: Path, stamp: np.ndarray, index: Index) -> None:
    """Write the index atomically: to a temporary file, which is then renamed."""
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
