"""Reader of image-classification data sets from the Hugging Face hub, as .parquet files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.shards import check_shards
from piat_jax.data.encoded import EncodedImages
from piat_jax.data.search_paths import Search
from piat_jax.data.types import Found

IMAGES = ("image", "img")
LABELS = ("label", "fine_label", "labels")
TESTS = ("test", "validation", "valid", "val")


def read_parquet(search: Search, folder: Path) -> Found | None:
    """Read train-*.parquet and test-*.parquet (or validation-*, valid-*) in `folder` or a subfolder.

    The hub's columns are an image (bytes of a file) called image or img, and a label called label, fine_label or
    labels. Class names come from the files' metadata. As files may be sorted by class, examples are shuffled in a fixed
    random order.
    """
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else [folder]
    for place in places:
        train, test = shards(place, "train"), next((found for name in TESTS if (found := shards(place, name))), [])
        if train and test:
            examples, names = read_split(train)
            return Found(examples, read_split(test)[0], str(place), "", names)
    search.missing(*(f"{folder}/{name}-*.parquet" for name in ("train", "test")))
    return None


def shards(folder: Path, split: str) -> list[Path]:
    """The files of a split, in order; none may be missing if their names contain the number of files."""
    paths = sorted([*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")])
    check_shards(paths)
    return paths


def read_split(paths: list[Path]) -> tuple[tuple[EncodedImages, np.ndarray], tuple[str, ...]]:
    """The encoded images and labels of a split, and its class names if they are known."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{paths[0]} needs pyarrow; pip install 'piat_jax[data]'") from error
    rows: list[tuple[Path, int, Any]] = []
    labels, names = [], ()
    for path in paths:
        try:
            # Not memory-mapped, so that a damaged file raises and does not crash the process. Checksums are verified.
            file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
            images_key, labels_key = columns(path, file.schema_arrow)
            names = names or class_names(file.schema_arrow, labels_key)
            table = file.read([images_key, labels_key])
            table.validate(full=True)
            values = (value for chunk in table[images_key].chunks for value in chunk.field("bytes"))
            rows += [(path, row, value) for row, value in enumerate(values)]
            labels += table[labels_key].to_pylist()
        except InputError:
            raise
        except Exception as error:  # Damaged files can raise almost any exception.
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path} cannot be read as parquet ({line}); download it again") from error
    if not rows:
        raise InputError(f"{paths[0]} has no rows; download it again")
    if not all(isinstance(label, int) for label in labels):
        raise InputError(f"{paths[0]} has labels that are not integers; give one class index per image")
    order = np.random.RandomState(0).permutation(len(rows))
    array = np.array(labels)[order]
    for label in (array.min(), array.max()):
        if not 0 <= label < 100_000:
            raise InputError(f"{paths[0]} has label {label}; hidden test labels cannot be used, give labels from 0")
    rows = [rows[index] for index in order]
    images = EncodedImages([f"{path} row {row}" for path, row, _ in rows], lambda i: image_bytes(*rows[i]))
    return (images, array.astype(np.int32)), names


def image_bytes(path: Path, row: int, value: Any) -> bytes:
    """The image file in a row."""
    data = value.as_py()
    if data is None:
        raise InputError(f"{path} row {row} has no image bytes; download the data set with its images embedded")
    return data


def columns(path: Path, schema: Any) -> tuple[str, str]:
    """The names of the image and the label column."""
    names = set(schema.names)
    image = next((name for name in IMAGES if name in names), None)
    label = next((name for name in LABELS if name in names), None)
    if image is None or label is None:
        raise InputError(
            f"{path} has columns {', '.join(schema.names)}; give an image as {' or '.join(IMAGES)}, "
            f"and a label as {' or '.join(LABELS)}"
        )
    return image, label


def class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The class names that the hub's library wrote into a file, or ()."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described["info"]["features"][label]["names"]
        return tuple(names) if all(isinstance(name, str) for name in names) else ()
    except (ValueError, KeyError, TypeError):
        return ()
