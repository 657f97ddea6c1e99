"""Any data set as NumPy arrays in .npz files: the way in for data of your own."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.data.types import Dataset, Split

ONE_FILE_KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
PAIR_FILES = ("train.npz", "test.npz")
PAIR_KEYS = ("image", "label")
MAX_CLASSES = 100_000
"""A label beyond this is an identifier, not a class."""


def load_npz(data_dir: str | os.PathLike[str]) -> Dataset:
    """The data set in one .npz file, or in a folder's train.npz and test.npz.

    The number of classes is the highest label plus one.

    Args:
      data_dir: a file with x_train, y_train, x_test, y_test or train_images, train_labels, test_images, test_labels;
        or a folder whose train.npz and test.npz have image and label. Images are uint8 `[N, H, W, C]` or
        `[N, H, W]`, labels integers `[N]` or `[N, 1]`.

    Raises:
      InputError: no such file, or it holds something else.
    """
    if not str(data_dir):
        raise InputError("data_dir is empty; give the path of an .npz file, or a folder with train.npz and test.npz")
    path = Path(data_dir).expanduser()
    if path.is_dir():
        train, test = (to_split(path / file, read_arrays(path / file), *PAIR_KEYS) for file in PAIR_FILES)
    else:
        arrays = read_arrays(path)
        keys = next((keys for keys in ONE_FILE_KEYS if set(keys) <= set(arrays)), None)
        if keys is None:
            raise InputError(
                f"{path} has {', '.join(sorted(arrays)) or 'no arrays'}; "
                f"give {' or '.join(', '.join(keys) for keys in ONE_FILE_KEYS)}"
            )
        train, test = to_split(path, arrays, *keys[:2]), to_split(path, arrays, *keys[2:])
    highest = max(int(split.labels.max(initial=1)) for split in (train, test))
    return Dataset("npz", train, test, highest + 1)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; pickled objects are refused."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the path of an .npz file, or a folder with train.npz, test.npz")
    try:
        # Opened here: np.load leaves a damaged file open.
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise InputError(f"{path} holds a single array; give an .npz file, as np.savez_compressed writes it")
            return {key: np.asarray(arrays[key]) for key in arrays.files}
    except InputError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as .npz without pickle ({error}); write plain arrays") from error


def to_split(path: Path, arrays: dict[str, np.ndarray], images_key: str, labels_key: str) -> Split:
    """The examples under two keys, with a channel axis and int32 labels."""
    for key in (images_key, labels_key):
        if key not in arrays:
            raise InputError(f"{path} has no array {key!r}, only {', '.join(sorted(arrays)) or 'nothing'}; add it")
    images, labels = arrays[images_key], arrays[labels_key]
    if images.dtype != np.uint8:
        raise InputError(
            f"{path}: {images_key} has dtype {images.dtype}; give uint8 in [0, 255]; "
            "convert floats in [0, 1] by np.rint(255 * x).astype(np.uint8)"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{path}: {labels_key} has dtype {labels.dtype}; give integers, one class index per image")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    # Before the cast: an int64 label must not wrap around into a valid one.
    for label in (labels.min(initial=0), labels.max(initial=0)):
        if not 0 <= label < MAX_CLASSES:
            raise InputError(f"{path}: {labels_key} has label {label}; give class indices in [0, {MAX_CLASSES})")
    return Split(images[..., None] if images.ndim == 3 else images, labels.astype(np.int32))
