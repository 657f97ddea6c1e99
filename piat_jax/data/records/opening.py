"""Open the training and the test images in a folder or a pattern of files, in any supported format."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded
from piat_jax.data.records.base import Records
from piat_jax.data.records.examples import ArrayRecords, TfRecords
from piat_jax.data.records.folders import FolderRecords
from piat_jax.data.records.geometry import Decoding
from piat_jax.data.records.images import RecordImages
from piat_jax.data.records.listed import listed
from piat_jax.data.records.parquet import ParquetRecords
from piat_jax.data.records.tar import TarRecords
from piat_jax.data.types import Found

TESTS = ("test", "validation", "valid", "val")
TRAINS = ("train", "training")
SPLIT = re.compile(rf"(?:^|[-_.])({'|'.join((*TRAINS, *TESTS))})(?=$|[-_.\d])")
KINDS = re.compile(r"\.(tar|parquet|array_record|arrayrecord|tfrecord|tfrecords)(?:-\d+-of-\d+)?$")
CLASS_NAMES = "label.labels.txt"
"""TFDS's name of the file with the class names, one per line."""


def read_records(name: str, decoding: Decoding, test_list: str = "") -> Found:
    """Open the encoded images in a folder, or in the files of a pattern such as "~/in1k/imagenet-*.tar".

    A folder holds train/CLASS/*.jpg and test/CLASS/*.jpg, or files of one format (tar, parquet, array_record, tfrecord)
    whose names or folders' names contain the split: train, and test, validation, valid or val. If labels of test images
    are hidden, the validation images are used instead.

    Args:
      name: of the folder, or the pattern.
      decoding: how to decode images.
      test_list: a file that selects and orders the test images (`listed`); empty = all.

    Raises:
      InputError: there are no such files, or they cannot be used.
    """
    place = expanded(name)
    train, tests = _class_folders(place) if place.is_dir() else (None, [])
    if train is None:
        train, tests = _files(place)
    test = next((found for found in (make() for make in tests) if not found.hidden), None)
    if test is None:
        raise InputError(f"{name} has only test images with hidden labels; give validation images as well")
    for split in (train, test):
        if (low := int(split.labels.min())) < 0:
            raise InputError(f"{split.where} has label {low}; give class indices from 0")
    tested = _listed(test, decoding, test_list) if test_list else _mixed(test, decoding)
    return Found(_mixed(train, decoding), tested, str(place), "", train.class_names or test.class_names)


def _mixed(records: Records, decoding: Decoding) -> tuple[RecordImages, np.ndarray]:
    """A split in a fixed random order, as files are mostly sorted by class."""
    images = RecordImages(records, decoding, np.random.RandomState(0).permutation(len(records)))
    return images, images.labels


def _listed(records: Records, decoding: Decoding, path: str) -> tuple[RecordImages, np.ndarray]:
    """The images of a split that are in a list, in the list's order."""
    images = RecordImages(records, decoding, listed(records, path))
    return images, images.labels


def _class_folders(place: Path) -> tuple[Records | None, list[Callable[[], Records]]]:
    """The splits of a folder with class folders; None if it has none."""
    train = next((place / name for name in TRAINS if (place / name).is_dir()), None)
    if train is None or not any(path.is_dir() and path.name[0] != "." for path in train.iterdir()):
        return None, []
    found = FolderRecords(train)
    # ImageNet's test folder has images without class folders.
    tests = [place / name for name in TESTS if (place / name).is_dir()]
    tests = [path for path in tests if any(each.is_dir() for each in path.iterdir())]
    if not tests:
        raise InputError(f"{place} has {train.name}/CLASS and no {'/CLASS, '.join(TESTS)}/CLASS; give one of these")
    return found, [lambda path=path: FolderRecords(path, found.class_names) for path in tests]


def _files(place: Path) -> tuple[Records, list[Callable[[], Records]]]:
    """The splits of a folder or a pattern with files of one format."""
    if place.is_dir():
        paths = [
            *place.iterdir(),
            *(path for folder in place.iterdir() if folder.is_dir() for path in folder.iterdir()),
        ]
    else:
        base = Path(place.anchor) if place.is_absolute() else Path()
        paths = list(base.glob(str(place.relative_to(place.anchor)) if place.is_absolute() else str(place)))
    paths = sorted(path for path in paths if KINDS.search(path.name) and path.is_file())
    if not paths:
        raise InputError(
            f"{place} holds no encoded images; give a folder with train/CLASS/*.jpg, or with .tar, .parquet, "
            ".array_record or .tfrecord files, or a pattern of such files"
        )
    kinds = sorted({match[1] for path in paths if (match := KINDS.search(path.name))})
    if len(kinds) > 1:
        raise InputError(f"{place} holds files of several formats ({', '.join(kinds)}); give a pattern for one of them")
    by_split: dict[str, list[Path]] = {}
    for path in paths:
        found = SPLIT.search(path.name.lower()) or SPLIT.fullmatch(path.parent.name.lower())
        if not found:
            raise InputError(f"{path} does not show its split; put train, or one of {', '.join(TESTS)}, into its name")
        by_split.setdefault(found[1], []).append(path)
    train = next((by_split[name] for name in TRAINS if name in by_split), None)
    tests = [by_split[name] for name in TESTS if name in by_split]
    if train is None or not tests:
        raise InputError(f"{place} has only {' and '.join(by_split)}; give train, and one of {', '.join(TESTS)}")
    return _read(kinds[0], train), [lambda paths=paths: _read(kinds[0], paths) for paths in tests]


def _read(kind: str, paths: Sequence[Path]) -> Records:
    try:
        if kind == "parquet":
            return ParquetRecords(paths)
        form = TarRecords if kind == "tar" else ArrayRecords if kind.startswith("array") else TfRecords
        return form(paths, _class_names(paths[0].parent))
    except OSError as error:
        raise InputError(f"{error.filename or paths[0]} cannot be read: {error.strerror or error}") from error


def _class_names(folder: Path) -> tuple[str, ...]:
    path = folder / CLASS_NAMES
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
