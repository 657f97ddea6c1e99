"""The result of every source: uint8 images and int32 labels, checked once."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from piat_jax.core.checks import InputError, check_count


class Split(NamedTuple):
    """The training or the test examples of a data set."""

    images: np.ndarray  # [N, H, W, C] uint8
    labels: np.ndarray  # [N] int32, in [0, num_classes)


class Found(NamedTuple):
    """The result of a reader: as two `Split`s, but images may be encoded until they are indexed."""

    train: tuple[Any, np.ndarray]  # (np.ndarray or encoded.EncodedImages, labels)
    test: tuple[Any, np.ndarray]
    where: str  # the file or folder it was read from
    name: str = ""  # of the published data set, if these are its files
    class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, or memory-mapped from a file; its constructor checks it.

    Args:
      name: as given to `load`; `check_augmentation` reads it.
      train: the training examples.
      test: the test examples, of the same height, width and channels.
      num_classes: K, at least 2.
      class_names: K names, or `()` for "0", "1", ...
      where: the file or folder it was read from.

    Raises:
      InputError: a split is empty, has a wrong type or shape, or a label outside [0, num_classes).
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...] = ()
    where: str = ""

    def __post_init__(self) -> None:
        check_count("num_classes", self.num_classes, 2)
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(str(label) for label in range(self.num_classes)))
        if len(self.class_names) != self.num_classes:
            raise InputError(f"{self.name}: {len(self.class_names)} class_names for num_classes={self.num_classes}")
        file = Path(self.where)
        named = file.name if file.stem == self.name else self.name  # own.npz, with its ending
        for part, split in (("train", self.train), ("test", self.test)):
            check_split(f"{named} {part}", split, self.num_classes)
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise InputError(
                f"{self.name}: training images are {self.train.images.shape[1:]} and test images "
                f"{self.test.images.shape[1:]}; give both the same height, width and number of channels, or the "
                "crop size for encoded images: --config.dataset.image_size=224"
            )


def check_split(where: str, split: Split, num_classes: int) -> None:
    """Raise InputError unless `split` is a valid `Split`; `where` is the beginning of the message.

    >>> check_split("mine train", Split(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(3, np.int32)), 10)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: mine train has 2 images but 3 labels; give one label per image
    """
    images, labels = split
    if images.dtype != np.uint8:
        raise InputError(f"{where} images have dtype {images.dtype}; give uint8 in [0, 255]")
    if images.ndim != 4:
        raise InputError(f"{where} images have shape {images.shape}; give [examples, height, width, channels]")
    if labels.dtype != np.int32:
        raise InputError(f"{where} labels have dtype {labels.dtype}; give int32")
    if labels.ndim != 1:
        raise InputError(f"{where} labels have shape {labels.shape}; give [examples], one class index each")
    if len(images) != len(labels):
        raise InputError(f"{where} has {len(images)} images but {len(labels)} labels; give one label per image")
    if not images.size:
        raise InputError(f"{where} is empty: images of shape {images.shape}; give at least one example")
    if labels.min() < 0 or labels.max() >= num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        shifted = "; they seem to count from 1: subtract 1" if labels.min() == 1 and wrong == num_classes else ""
        raise InputError(
            f"{where} has label {wrong}; give labels in [0, {num_classes}) for num_classes={num_classes}{shifted}"
        )
