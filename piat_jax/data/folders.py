"""Readers of image folders: one folder per class, and Tiny-ImageNet as published."""

from pathlib import Path

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.data.class_folders import SUFFIXES, class_folders, image_files
from piat_jax.data.dataset_info import DatasetInfo, dataset
from piat_jax.data.encoded import EncodedImages
from piat_jax.data.search_paths import Search
from piat_jax.data.types import Found

TEST_FOLDERS = ("test", "val", "valid", "validation")
TINY = "tiny-imagenet-200"
ANNOTATIONS = "val_annotations.txt"
Labelled = list[tuple[Path, int]]


def read_image_folder(search: Search, folder: Path) -> Found | None:
    """Read train/CLASS/*.png and test/CLASS/*.png in `folder`; test may be called val, valid or validation.

    Classes are numbered in the order of their sorted names. As files are sorted by class, they are shuffled in a fixed
    random order.
    """
    train = folder / "train"
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), folder / TEST_FOLDERS[0])
    if not train.is_dir() or not test.is_dir():
        search.missing(*(f"{path}/CLASS/*.png" for path in (train, test) if not path.is_dir()))
        return None
    classes = class_folders(train)
    return found(folder, list_classes(train, classes), list_classes(test, classes), "", tuple(classes))


@dataset(
    "tiny_imagenet",
    DatasetInfo(
        title="Tiny-ImageNet",
        image_shape=(64, 64, 3),
        train=100_000,
        test=10_000,
        classes=200,
        class_names=(),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        crop_padding=4,
        flip=True,
        names=("tiny_imagenet", "tiny-imagenet"),
        home="http://cs231n.stanford.edu/tiny-imagenet-200.zip, unzip it",
    ),
    summary="Two hundred classes of ImageNet, smaller; tested on its validation images.",
    paper="Le and Yang (2015), Tiny ImageNet visual recognition challenge",
)
def read_tiny_imagenet(search: Search, folder: Path) -> Found | None:
    """Read Tiny-ImageNet (Le and Yang, 2015) in `folder`; its validation images are the test examples.

    The published test images have no labels. A copy with validation images in class folders is accepted, too.
    """
    place = folder if folder.name == TINY or (folder / "wnids.txt").is_file() else folder / TINY
    paths = search.files(place, ["wnids.txt", "words.txt"])
    if not paths:
        return None
    classes = sorted(read_lines(paths[0]))
    words = dict(line.split("\t", 1) for line in read_lines(paths[1]) if "\t" in line)
    names = tuple(words.get(wnid, wnid).split(",")[0].strip() for wnid in classes)
    train = list_classes(place / "train", classes)
    annotations = place / "val" / ANNOTATIONS
    if annotations.is_file() and (place / "val" / "images").is_dir():
        test = read_annotations(annotations, classes)
    else:
        test = list_classes(place / "val", classes)
    return found(place, train, test, "tiny_imagenet", names)


def read_annotations(path: Path, classes: list[str]) -> Labelled:
    """The validation images and their labels, from lines with file name, class and four numbers, separated by tabs."""
    numbers = {name: number for number, name in enumerate(classes)}
    labelled = []
    for line in read_lines(path):
        parts = line.split("\t")
        if len(parts) < 2 or parts[1] not in numbers:
            raise InputError(f"{path} has the line {line!r}; it must be an image's name, a tab and one of wnids.txt")
        labelled.append((path.parent / "images" / parts[0], numbers[parts[1]]))
    have = {image.name for image in image_files(path.parent / "images")}
    missing = [image for image, _ in labelled if image.name not in have]
    if missing or len(have) != len(labelled):
        raise InputError(
            f"{path} lists {len(labelled)} images and {path.parent / 'images'} holds {len(have)}"
            f"{f', not {missing[0].name}' if missing else ''}; unpack the archive again"
        )
    return labelled


def list_classes(folder: Path, classes: list[str]) -> Labelled:
    """All images below `folder` with the numbers of their classes; each class must have images."""
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; unpack the archive again")
    for name in class_folders(folder):
        if name not in classes:
            raise InputError(
                f"{folder / name} is a class that the training images do not have; check its spelling, or remove it"
            )
    labelled = []
    for number, name in enumerate(classes):
        # In Tiny-ImageNet, training images are one folder deeper.
        place = folder / name / "images" if (folder / name / "images").is_dir() else folder / name
        images = image_files(place) if place.is_dir() else []
        if not images:
            raise InputError(f"{place} holds no image; every class needs one of {', '.join(sorted(SUFFIXES))}")
        labelled += [(image, number) for image in images]
    return labelled


def found(folder: Path, train: Labelled, test: Labelled, name: str, class_names: tuple[str, ...]) -> Found:
    """Both splits, each in a fixed random order."""
    splits = []
    for labelled in (train, test):
        order = np.random.RandomState(0).permutation(len(labelled))
        paths = [labelled[index][0] for index in order]
        labels = np.array([labelled[index][1] for index in order], np.int32)
        splits.append(
            (EncodedImages([str(path) for path in paths], lambda i, paths=paths: paths[i].read_bytes()), labels)
        )
    return Found(splits[0], splits[1], str(folder), name, class_names)


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text ({error}); unpack the archive again") from error
