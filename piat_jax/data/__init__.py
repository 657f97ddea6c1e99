"""Data sets in memory, and what turns them into augmented batches on the device.

`load(name)` reads one of `SOURCES`, or "tfds:NAME". `batching` picks a step's examples; `augment` crops, flips and
scales them.
"""

import os
from collections.abc import Callable

from piat_jax.core.checks import InputError, check_at_least, did_you_mean
from piat_jax.data.cifar import load_cifar10, load_cifar100
from piat_jax.data.embedded import load_embedded
from piat_jax.data.idx import load_fashion_mnist, load_mnist
from piat_jax.data.npz import load_npz
from piat_jax.data.svhn import load_svhn
from piat_jax.data.tfds_source import load_tfds
from piat_jax.data.types import Dataset, Split

__all__ = ["SOURCES", "Dataset", "Split", "load"]

# name -> function(data_dir). A new source also decides whether its images may be mirrored: augment.FLIP_ALLOWED.
SOURCES: dict[str, Callable[[str | os.PathLike[str]], Dataset]] = {
    "embedded": load_embedded,
    "fashion_mnist": load_fashion_mnist,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "svhn": load_svhn,
    "npz": load_npz,
}


def load(
    name: str, *, data_dir: str | os.PathLike[str] = "", train_examples: int = 0, test_examples: int = 0
) -> Dataset:
    """The data set called `name`, in memory.

    Args:
      name: one of `SOURCES`, or "tfds:NAME" for any image-classification data set of TensorFlow Datasets.
      data_dir: where its files are; empty looks in the usual places, and an error lists them. For "npz", the file.
      train_examples: keep the first n training examples; 0 keeps all.
      test_examples: keep the first n test examples; 0 keeps all.

    Raises:
      InputError: an unknown name, files that are missing or damaged, or more examples than there are.

    >>> load("embedded", train_examples=100).train.images.shape
    (100, 28, 28, 1)
    >>> load("cifar11")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: dataset='cifar11' is unknown; did you mean 'cifar10'?
    """
    check_at_least("train_examples", train_examples, 0)
    check_at_least("test_examples", test_examples, 0)
    if name.startswith("tfds:"):
        dataset = load_tfds(name.removeprefix("tfds:"), data_dir)
    elif name in SOURCES:
        dataset = SOURCES[name](data_dir)
    else:
        raise InputError(f"dataset={name!r} is unknown{did_you_mean(name, [*SOURCES, 'tfds:NAME'])}")
    train = first("train_examples", train_examples, name, dataset.train)
    test = first("test_examples", test_examples, name, dataset.test)
    return Dataset(dataset.name, train, test, dataset.num_classes, dataset.class_names)


def first(argument: str, num_examples: int, name: str, split: Split) -> Split:
    """The first `num_examples` of a split, copied so that the rest is freed; 0 means all."""
    if num_examples > len(split.labels):
        raise InputError(
            f"{argument}={num_examples} is more than the {len(split.labels)} of {name!r}; "
            f"give at most {len(split.labels)}, or 0 for all"
        )
    if not num_examples:
        return split
    return Split(split.images[:num_examples].copy(), split.labels[:num_examples].copy())
