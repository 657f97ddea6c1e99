"""The cache of a data set, a verified copy: four .npy files and dataset.json, which is written last."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.data.npz import map_array
from piat_jax.data.search_paths import Search
from piat_jax.data.types import Found

DESCRIPTION = "dataset.json"
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def read_cache(search: Search, folder: Path) -> Found | None:
    """Read the data set that `prepare` wrote to `folder`; every file's sha256 is verified, and images stay on disk.

    Raises:
      InputError: a file is missing or differs from the one that was written.
    """
    path = search.file(folder / DESCRIPTION)
    if not path:
        return None
    try:
        about = json.loads(path.read_text())
        hashes, name, names = about["sha256"], about["name"], tuple(about["class_names"])
        arrays = [_verified(folder / f"{array}.npy", hashes[array]) for array in ARRAYS]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error}); run piat-data prepare again") from error
    train, test = (arrays[0], np.array(arrays[1])), (arrays[2], np.array(arrays[3]))
    return Found(train, test, str(folder), name, names)


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(path: Path, expected: Any) -> np.ndarray:
    """Open the array in a file and verify the file's hash."""
    if not path.is_file():
        raise InputError(f"{path} is missing; run piat-data prepare again")
    if sha256(path) != expected:
        raise InputError(f"{path} is not the original file: its sha256 differs; run piat-data prepare again")
    return map_array(path)
