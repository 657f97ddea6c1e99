"""SVHN, cropped digits, from its own .mat files."""

import os
from pathlib import Path

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.data.places import not_found, roots
from piat_jax.data.types import Dataset, Split

FILES = ("train_32x32.mat", "test_32x32.mat")


def load_svhn(data_dir: str | os.PathLike[str] = "") -> Dataset:
    """SVHN (Netzer et al., 2011), without its extra part: 73,257 + 26,032 images 32x32x3 of digits.

    Args:
      data_dir: the folder with train_32x32.mat and test_32x32.mat. Empty: `$PIAT_DATA_DIR` and ./data; either may keep
        them in a folder svhn or SVHN.

    Raises:
      InputError: files are missing or are not what SVHN publishes.
    """
    tried = []
    for folder in [root / name for root in roots(data_dir) for name in ("", "svhn", "SVHN")]:
        paths = [folder / file for file in FILES]
        missing = [path for path in paths if not path.is_file()]
        if not missing:
            return Dataset("svhn", read_mat(paths[0]), read_mat(paths[1]), 10)
        tried += missing
    raise not_found("svhn", tried, "download both files from http://ufldl.stanford.edu/housenumbers and give data_dir")


def read_mat(path: Path) -> Split:
    """The examples of one .mat file: X `[32, 32, 3, N]`, y `[N, 1]` with 10 for the digit 0."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # A damaged file makes scipy raise nearly anything.
        raise InputError(f"{path} cannot be read as a MATLAB 5 file ({error}); download it again") from error
    if "X" not in content or "y" not in content:
        raise InputError(f"{path} lacks the variables X and y; give the cropped-digits file of SVHN")
    images, labels = content["X"], content["y"].reshape(-1)
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise InputError(f"{path} has X of shape {images.shape}, not (32, 32, 3, N); give the cropped-digits file")
    for label in (labels.min(initial=1), labels.max(initial=1)):
        if not 1 <= label <= 10:
            raise InputError(f"{path} has label {label}, outside SVHN's [1, 10]; give the cropped-digits file")
    return Split(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), (labels % 10).astype(np.int32))
