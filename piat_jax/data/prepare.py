"""Write any data set as a verified cache, block by block; after an interruption, the same call resumes the work."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded, write_file, write_json
from piat_jax.data.cache import ARRAYS, DESCRIPTION, sha256
from piat_jax.data.types import Dataset

PROGRESS = "prepare.json"
PARTIAL = ".partial"
BLOCK_BYTES = 1 << 25
OURS = {DESCRIPTION, PROGRESS, *(f"{array}.npy{end}" for array in ARRAYS for end in ("", PARTIAL))}


def prepare(
    dataset: Dataset, out: str | os.PathLike[str], *, on_block: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Write `dataset` to the folder `out`, which `load` then reads by its path or, in a root, by its name.

    The files are four .npy files (images uint8, labels int32) and dataset.json, which has their sha256 and is written
    last: a folder with it is complete. Blocks from an interrupted call are kept if the data set is the same.

    Args:
      dataset: from `open_dataset`, which leaves images encoded until they are indexed, or from `load`.
      out: a folder that is new, empty, or from an earlier call.
      on_block: called as `on_block(images done, images)`.

    Raises:
      InputError: the folder has other files, an image cannot be used, or the disk is full.
    """
    out = expanded(out)
    plan = _plan(dataset)
    try:
        if _is_done(out, plan):
            return out
        out.mkdir(parents=True, exist_ok=True)
        done = _resume(out, plan)
        _check_space(out, dataset, done)
        _write_labels(out, dataset)
        total = len(dataset.train.labels) + len(dataset.test.labels)
        before = 0
        for split, images in (("train", dataset.train.images), ("test", dataset.test.images)):
            _write_images(out, split, images, plan, done, lambda n, before=before: on_block(before + n, total))
            before += len(images)
        hashes = {array: sha256(out / f"{array}.npy") for array in ARRAYS}
        write_json(out / DESCRIPTION, {**plan, "sha256": hashes})
        (out / PROGRESS).unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise InputError(
                f"{out} cannot be written further: {error.strerror}; free some space, and repeat the command to resume"
            ) from error
        raise InputError(f"{error.filename or out} cannot be written: {error.strerror}; give another folder") from error
    return out


def _plan(dataset: Dataset) -> dict[str, Any]:
    """The identity of the data set, as stored in dataset.json."""
    labels = hashlib.sha256(b"".join(split.labels.tobytes() for split in (dataset.train, dataset.test)))
    return {
        "name": dataset.name,
        "source": dataset.where,
        "class_names": list(dataset.class_names),
        "train": list(dataset.train.images.shape),
        "test": list(dataset.test.images.shape),
        "labels_sha256": labels.hexdigest(),
    }


def _is_done(out: Path, plan: dict[str, Any]) -> bool:
    """Whether `out` already holds this data set; another data set, or other files, are an error."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out={str(out)!r} is a file; give a folder")
    others = sorted({path.name for path in out.iterdir()} - OURS) if out.is_dir() else []
    if others:
        raise InputError(f"out={str(out)!r} holds other files ({', '.join(others[:3])}); give a new or empty folder")
    written = _read(out / DESCRIPTION)
    if written is None:
        return False
    if {key: written.get(key) for key in plan} != plan:
        raise InputError(f"out={str(out)!r} holds another data set ({written.get('name')}); give a new or empty folder")
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """Read a JSON file; None if it does not exist or is incomplete."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _resume(out: Path, plan: dict[str, Any]) -> dict[str, int]:
    """The number of images that an earlier call wrote for each split; files of another data set are removed."""
    progress = _read(out / PROGRESS)
    if progress and {key: progress.get(key) for key in plan} == plan:
        return progress["done"]
    for name in OURS:
        (out / name).unlink(missing_ok=True)
    return {"train": 0, "test": 0}


def _check_space(out: Path, dataset: Dataset, done: dict[str, int]) -> None:
    """Raise InputError if the disk has too little space for the remaining data."""
    left = sum(
        (len(split.labels) - done[name]) * int(np.prod(split.images.shape[1:])) + split.labels.nbytes
        for name, split in (("train", dataset.train), ("test", dataset.test))
    )
    free = shutil.disk_usage(out).free
    if left > free:
        raise InputError(f"out={str(out)!r} has {free:,} bytes free, and {left:,} are needed; free some space")


def _write_labels(out: Path, dataset: Dataset) -> None:
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        write_file(out / f"{name}_labels.npy", lambda file, labels=split.labels: np.save(file, labels))


def _write_images(
    out: Path, split: str, images: Any, plan: dict[str, Any], done: dict[str, int], on_block: Callable[[int], None]
) -> None:
    """Append the missing images to the split's file, and rename the file when it is complete."""
    final = out / f"{split}_images.npy"
    partial = out / f"{split}_images.npy{PARTIAL}"
    count, size = len(images), int(np.prod(images.shape[1:]))
    if done[split] == count and final.is_file() and not partial.exists():
        return
    if not partial.is_file():
        done[split] = 0
    with partial.open("r+b" if done[split] else "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": tuple(images.shape)}
        )
        file.seek(done[split] * size, os.SEEK_CUR)
        # Bytes after the last recorded progress may be half a block.
        file.truncate()
        step = max(1, BLOCK_BYTES // size)
        for start in range(done[split], count, step):
            stop = min(start + step, count)
            file.write(np.ascontiguousarray(images[start:stop]).data)
            file.flush()
            os.fsync(file.fileno())
            done[split] = stop
            write_json(out / PROGRESS, {**plan, "done": done})
            on_block(stop)
    partial.replace(final)
