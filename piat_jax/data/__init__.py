"""Data sets, and augmented batches of them on the device.

`load` reads a data set by its name or path; `sources` decides which formats are searched for where, and the decorator
`dataset` adds a name and its reader. `batching` picks a step's examples; `augment` crops, flips and changes them.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from piat_jax.core.checks import InputError, check_count
from piat_jax.core.renamed import renamed
from piat_jax.data.dataset_info import DATASETS, KNOWN, DatasetInfo, check_published, dataset
from piat_jax.data.parts import first, hold_out
from piat_jax.data.records.geometry import Decoding
from piat_jax.data.records.opening import read_records
from piat_jax.data.sources import check_name, find, names
from piat_jax.data.types import Dataset, Found, Split

__all__ = [
    "DATASETS",
    "KNOWN",
    "Dataset",
    "DatasetInfo",
    "Found",
    "Split",
    "check_name",
    "dataset",
    "first",
    "hold_out",
    "load",
    "names",
    "open_dataset",
]

__getattr__ = renamed(__name__, {"Known": "DatasetInfo"})


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] = "",
    train_examples: int = 0,
    test_examples: int = 0,
    decoding: Decoding | None = None,
    test_list: str = "",
) -> Dataset:
    """Load the data set `name` into memory; uncompressed arrays stay in their file and are memory-mapped.

    Args:
      name: one of `names()`; "tfds:NAME" for any image-classification data set of TensorFlow Datasets; or the path of
        a folder or file, whose format is detected.
      data_dir: folder with a named data set's files; empty = search the usual places. For "npz", the file.
      train_examples: keep the first n training examples; 0 keeps all.
      test_examples: keep the first n test examples; 0 keeps all.
      decoding: how encoded images of any size become arrays of one size; they then stay in their files and are decoded
        when they are indexed, and `name` is a folder or a pattern (`records.opening.read_records`). Default: images of
        one size.
      test_list: for encoded images: a text file with CLASS/FILE in each line, which selects and orders the test images
        (`records.listed`); empty = all. `test_examples` then takes the first n of the list.

    Raises:
      InputError: the name is unknown, files are missing (every searched place is listed) or damaged, there are fewer
        examples than requested, or the first n have other classes than the entire set.

    >>> load("embedded", train_examples=100).train.images.shape
    (100, 28, 28, 1)
    """
    check_count("train_examples", train_examples, 0)
    check_count("test_examples", test_examples, 0)
    dataset = open_dataset(name, data_dir=data_dir, decoding=decoding, test_list=test_list)
    train = first("train_examples", train_examples, name, dataset.train)
    test = first("test_examples", test_examples, name, dataset.test, as_listed=bool(test_list))
    return dataclasses.replace(dataset, train=train, test=test)


def open_dataset(
    name: str, *, data_dir: str | os.PathLike[str] = "", decoding: Decoding | None = None, test_list: str = ""
) -> Dataset:
    """As `load`, but encoded images are decoded only when they are indexed.

    For data that does not fit in memory: `prepare` writes a cache of it.
    """
    if test_list and decoding is None:
        raise InputError(f"test_list={test_list!r} is for encoded images; give decoding, or leave it out")
    found = find(name, data_dir) if decoding is None else read_records(name, decoding, test_list)
    num_classes, class_names = classes(found)
    shown = found.name or (name if name.startswith("tfds:") or name in names() else Path(found.where).stem)
    train, test = (Split(*split) for split in (found.train, found.test))
    check_published(found.name, train.images.shape[1:], num_classes)
    return Dataset(shown, train, test, num_classes, class_names, found.where)


def classes(found: Found) -> tuple[int, tuple[str, ...]]:
    """The number of classes and their names: as published, else as in the files, else the highest label plus one."""
    if found.name in KNOWN:
        known = KNOWN[found.name]
        return len(found.class_names) or known.classes, known.class_names or found.class_names
    if found.class_names:
        return len(found.class_names), found.class_names
    labels = found.train[1]
    fits = labels.ndim == 1 and 0 < labels.size == len(found.train[0])  # else `Split` reports the problem
    counts = np.bincount(labels) if fits else np.ones(2, int)
    if not counts.all():
        empty = int(np.argmin(counts))
        fix = "labels seem to count from 1: subtract 1" if empty == 0 else "renumber the labels from 0 without gaps"
        raise InputError(f"{found.where}: class {empty} has no training example; {fix}")
    return max(len(counts), 2), ()
