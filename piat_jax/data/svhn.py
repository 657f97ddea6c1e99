"""Reader of SVHN, cropped digits, from its .mat files."""

from pathlib import Path

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.data.dataset_info import DatasetInfo, dataset
from piat_jax.data.search_paths import Search
from piat_jax.data.types import Found, Split

FILES = ("train_32x32.mat", "test_32x32.mat")


@dataset(
    "svhn",
    DatasetInfo(
        title="SVHN (cropped digits)",
        image_shape=(32, 32, 3),
        train=73_257,
        test=26_032,
        classes=10,
        class_names=(),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        crop_padding=0,
        flip=False,
        names=("svhn", "SVHN", "svhn_cropped"),
        home="http://ufldl.stanford.edu/housenumbers: train_32x32.mat and test_32x32.mat",
    ),
    summary="Digits of house numbers, without the extra part.",
    paper="Netzer et al. (2011), Reading digits in natural images",
)
def read_svhn(search: Search, folder: Path) -> Found | None:
    """Read SVHN (Netzer et al., 2011) in `folder`, without its extra part."""
    paths = search.files(folder, FILES)
    return Found(read_mat(paths[0]), read_mat(paths[1]), str(folder), "svhn") if paths else None


def read_mat(path: Path) -> Split:
    """Read the examples in one .mat file: X `[32, 32, 3, N]`, y `[N, 1]` with 10 for the digit 0."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content.get("X"), content.get("y")
    except Exception as error:  # For a damaged file scipy can raise almost any exception.
        raise InputError(f"{path} cannot be read as a MATLAB 5 file ({error}); download it again") from error
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
        raise InputError(f"{path} lacks the variables X and y; give the cropped-digits file of SVHN")
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise InputError(f"{path} has X of shape {images.shape}, not (32, 32, 3, N); give the cropped-digits file")
    if not np.issubdtype(labels.dtype, np.number):
        raise InputError(f"{path} has y of dtype {labels.dtype}, not numbers; give the cropped-digits file")
    labels = labels.reshape(-1)
    for label in (labels.min(initial=1), labels.max(initial=1)):
        if not 1 <= label <= 10:
            raise InputError(f"{path} has label {label}, outside SVHN's [1, 10]; give the cropped-digits file")
    return Split(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), (labels % 10).astype(np.int32))
