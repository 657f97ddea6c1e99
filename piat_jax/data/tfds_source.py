"""Reader of image-classification data sets of TensorFlow Datasets, without TensorFlow."""

import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError, did_you_mean
from piat_jax.core.files import expanded
from piat_jax.data.search_paths import Search
from piat_jax.data.tfrecord import read_tfrecords
from piat_jax.data.types import Found, Split

FILE_FORMAT = "array_record"


def read_prepared(search: Search, folder: Path) -> Found | None:
    """Read a data set that TFDS prepared in `folder`: where dataset_info.json is, or the newest version with one."""
    infos = [*folder.glob("dataset_info.json"), *folder.glob("*/dataset_info.json")]
    if not infos:
        search.missing(folder / "dataset_info.json")
        return None
    place = max(infos, key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)]).parent
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(f"{place} needs tensorflow_datasets; pip install 'piat_jax[data]'") from error
    try:
        builder = tensorflow_datasets.builder_from_directory(str(place))
    except Exception as error:
        raise InputError(f"{place} cannot be opened: {first_line(error)}; prepare the data set again") from error
    check_features(str(place), builder.info.features)
    return read_builder(str(place), builder)


def load_tfds(name: str, data_dir: str | os.PathLike[str] = "") -> Found:
    """Read the TFDS data set `name`, such as "cifar10" or "imagenet_resized/32x32".

    Reading needs no TensorFlow, for both array_record and tfrecord files; the first use, which downloads and prepares,
    does. The test examples are those of "test", or of "validation" if there is no "test".

    Args:
      name: its name in TFDS, optionally with "/config" and ":version"; it must have features image and label.
      data_dir: TFDS's data folder. Empty: `$TFDS_DATA_DIR`, then ~/tensorflow_datasets.

    Raises:
      InputError: the data set does not exist, cannot be prepared or read, or has images of several sizes, or
        tensorflow_datasets is not installed.
    """
    try:
        import tensorflow_datasets
        from tensorflow_datasets.core.registered import DatasetNotFoundError
    except ImportError as error:
        raise InputError(f"'tfds:{name}' needs tensorflow_datasets; pip install 'piat_jax[data]'") from error
    # TFDS reads TFDS_DATA_DIR once, at import; read it here so that later changes take effect.
    given = str(data_dir) or os.environ.get("TFDS_DATA_DIR", "")
    folder = str(expanded(given)) if given else None
    try:
        builder: Any = tensorflow_datasets.builder(name, data_dir=folder)
        if not builder.is_prepared():
            builder = tensorflow_datasets.builder(name, data_dir=folder, file_format=FILE_FORMAT)
    except DatasetNotFoundError as error:
        known = tensorflow_datasets.list_builders(with_community_datasets=False)
        raise InputError(f"'tfds:{name}' is unknown{nearest(name, known)}") from error
    except Exception as error:
        raise InputError(f"'tfds:{name}' cannot be opened: {first_line(error)}") from error
    check_features(f"'tfds:{name}'", builder.info.features)
    try:
        # Without TensorFlow a preparation would fail only after the whole download.
        if has_tensorflow():
            builder.download_and_prepare()
        if not builder.info.splits:
            builder.as_data_source(split="train")  # raises if the data is not prepared
    except Exception as error:  # includes network, disk, checksum and import errors
        raise InputError(f"'tfds:{name}' {cannot_prepare(name, str(builder.data_dir), error)}") from error
    return read_builder(f"'tfds:{name}'", builder)


def check_features(where: str, features: Any) -> None:
    """Raise InputError unless there are an image and a class label."""
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise InputError(
            f"{where} has features {', '.join(features)}; give a data set with an image and a class label, "
            "called image and label"
        )


def read_builder(where: str, builder: Any) -> Found:
    """Read all examples of a prepared data set."""
    splits = choose_splits(where, builder.info.splits)
    train, test = (read(where, builder, split) for split in splits)
    return Found(train, test, where, "", tuple(builder.info.features["label"].names))


def choose_splits(where: str, splits: Iterable[str]) -> tuple[str, str]:
    """The names of the training and the test split among the prepared splits.

    >>> choose_splits("it", ["train", "validation"])
    ('train', 'validation')
    """
    splits = list(splits)
    if not splits:  # tfds.testing.mock_data has none
        return "train", "test"
    test = [split for split in ("test", "validation") if split in splits]
    if "train" not in splits or not test:
        raise InputError(f"{where} has only {', '.join(splits)}; give a data set with train, and test or validation")
    return "train", test[0]


def open_split(builder: Any, split: str) -> Iterable[Any]:
    """The examples of a prepared split, decoded one by one."""
    if not (builder.is_prepared() and builder.info.file_format.value == "tfrecord"):
        return builder.as_data_source(split=split)
    # TFDS reads TFRecord files only through TensorFlow, but decodes their examples without it.
    paths = builder.info.splits[split].filepaths
    return (builder.info.features.deserialize_example_np(record) for path in paths for record in read_tfrecords(path))


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed; nothing is imported."""
    return importlib.util.find_spec("tensorflow") is not None


def nearest(name: str, known: list[str]) -> str:
    """A suggestion of the nearest TFDS name, or the catalogue's address if no name is near."""
    suggestion = did_you_mean(name.split("/")[0].split(":")[0], known)
    return suggestion if "did you mean" in suggestion else "; see https://www.tensorflow.org/datasets/catalog"


def cannot_prepare(name: str, folder: str, error: Exception) -> str:
    """Why the data is not prepared, and the command that prepares it."""
    return (
        f"is not prepared as {FILE_FORMAT} in {folder} ({first_line(error)}); prepare it once, online, where "
        "TensorFlow is installed: pip install tensorflow 'piat_jax[data]'; python -c \"import tensorflow_datasets as t;"
        f" t.builder('{name}', data_dir='DIR', file_format='{FILE_FORMAT}').download_and_prepare()\"; "
        "then give data_dir=DIR"
    )


def first_line(error: Exception) -> str:
    """The first line of an error, as TFDS's messages have hundreds of lines."""
    text = str(error.args[0] if error.args else error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def read(where: str, builder: Any, split: str) -> Split:
    """Read all examples of a split."""
    images, labels = [], []
    try:
        for example in open_split(builder, split):
            images.append(example["image"])
            labels.append(example["label"])
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{where} needs {error.name} to decode images; pip install 'piat_jax[data]'") from error
    except Exception as error:  # Damaged files can raise almost any exception.
        raise InputError(f"{where}: {split} cannot be read ({first_line(error)}); prepare it again") from error
    count = builder.info.splits[split].num_examples if split in builder.info.splits else len(images)
    if len(images) != count:
        raise InputError(f"{where}: {split} has {len(images)} examples of {count}; prepare the data set again")
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise InputError(f"{where} has images of {len(shapes)} sizes; give a data set with one size")
    return Split(np.stack(images), np.asarray(labels, np.int32))
