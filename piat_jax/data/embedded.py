"""A subset of Fashion-MNIST inside the package: real data, offline, loaded in seconds."""

import hashlib
import importlib.resources

import numpy as np

from piat_jax.data.dataset_info import KNOWN, dataset
from piat_jax.data.types import Found, Split

FILE = "fashion_mnist_subset.npz"
KEYS = ("x_train", "y_train", "x_test", "y_test")
SHA256 = "afe2f6bf8f614c076896487635dbefe09e7065c7bc9b10c1c9c9b2913009c642"
"""`content_hash` of the shipped arrays."""


@dataset(
    "embedded",
    title="Fashion-MNIST (subset)",
    summary="Balanced parts of Fashion-MNIST inside the package, for quick experiments.",
    paper="Xiao et al. (2017), arXiv:1708.07747",
)
def read_embedded() -> Found:
    """1,024 training and 1,000 test images 28x28x1 of Fashion-MNIST, made by `piat_jax.data.build_subset`.

    Both splits are class-balanced and shuffled, so the first n examples are a fair sample. The training images come
    from the official training set, the test images from the official test set.

    >>> read_embedded().train.images.shape
    (1024, 28, 28, 1)
    """
    resource = importlib.resources.files("piat_jax.data").joinpath(FILE)
    with resource.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    train, test = Split(x_train, y_train.astype(np.int32)), Split(x_test, y_test.astype(np.int32))
    return Found(train, test, str(resource), "embedded", KNOWN["fashion_mnist"].class_names)


def content_hash(train: Split, test: Split) -> str:
    """The sha256 of the pixels and labels, independent of the file format."""
    digest = hashlib.sha256()
    for split in (train, test):
        digest.update(split.images.tobytes())
        digest.update(split.labels.astype(np.uint8).tobytes())
    return digest.hexdigest()
