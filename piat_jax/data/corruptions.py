"""Test images under common corruptions: CIFAR-10-C and CIFAR-100-C, Tiny-ImageNet-C and ImageNet-C as published."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded
from piat_jax.data.class_folders import class_folders, image_files
from piat_jax.data.encoded import EncodedImages
from piat_jax.data.parts import first
from piat_jax.data.types import Split

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The fifteen corruptions of the mean, in the paper's order: noise, blur, weather, digital."""
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Four more corruptions for choosing hyper-parameters; if present they are read, but do not count in the mean."""
SEVERITIES = 5
LABELS = "labels.npy"
ZENODO = "https://zenodo.org/records"
DOWNLOADS = {
    "cifar10": f"CIFAR-10-C.tar from {ZENODO}/2535967",
    "cifar100": f"CIFAR-100-C.tar from {ZENODO}/3555552",
    "tiny_imagenet": f"Tiny-ImageNet-C.tar from {ZENODO}/2536630",
    "": f"blur.tar, digital.tar, noise.tar and weather.tar of ImageNet-C from {ZENODO}/2235448",
}


@dataclasses.dataclass(frozen=True)
class Corruptions:
    """All corruptions in a folder."""

    where: str
    names: tuple[str, ...]  # the fifteen in their order, then the extra ones that exist
    reader: "_Reader"

    def split(self, name: str, severity: int, examples: int = 0) -> Split:
        """The images of one corruption at a severity from 1 to 5; the first `examples`, 0 = all.

        Images are memory-mapped, or decoded when indexed.

        Raises:
          InputError: there are fewer examples.
        """
        part = self.reader.split(name, severity)
        return first("num_examples", examples, f"{self.where} {name}", part) if examples else part


def open_corruptions(folder: str | Path, name: str, image_shape: tuple[int, ...], num_classes: int) -> Corruptions:
    """Open the corrupted test images in a folder, in either of the published layouts; nothing is decoded yet.

    | data | layout |
    |---|---|
    | CIFAR-10-C, CIFAR-100-C | `gaussian_noise.npy` and so on, the five severities in turn, and `labels.npy` |
    | Tiny-ImageNet-C, ImageNet-C | `gaussian_noise/1/CLASS/*.JPEG` and so on, also inside `noise/`, `blur/`, ... |

    Args:
      folder: holds the files.
      name: of the clean data set; decides what the errors suggest to download.
      image_shape: `(height, width, channels)` of the clean images.
      num_classes: K; class folders are numbered in the order of their sorted names, as for the clean images.

    Raises:
      InputError: a file is missing, or has another shape or type than the clean images; the message says which, and
        what to download.

    Source: Hendrycks & Dietterich (2019), arXiv:1903.12261.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise InputError(
            f"corruptions={str(folder)!r} is not a folder; unpack {download(name)}, and give the unpacked folder"
        )
    arrays = (folder / LABELS).exists() or any(folder.glob("*.npy"))
    read = (
        _Arrays(folder, name, image_shape, num_classes) if arrays else _Folders(folder, name, image_shape, num_classes)
    )
    missing = [str(read.place(each).relative_to(folder)) for each in CORRUPTIONS if not read.place(each).exists()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}; unpack {download(name)} there")
    there = (*CORRUPTIONS, *(each for each in EXTRA if read.place(each).exists()))
    for each in there:
        read.check(each)
    return Corruptions(str(folder), there, read)


def download(name: str) -> str:
    """The download for a data set, and its address.

    >>> download("cifar10")
    'CIFAR-10-C.tar from https://zenodo.org/records/2535967'
    """
    return DOWNLOADS.get(name, DOWNLOADS[""])


class _Reader(Protocol):
    """One layout."""

    def place(self, corruption: str) -> Path:
        """The path where a corruption must be."""
        ...

    def check(self, corruption: str) -> None:
        """Raise InputError unless a corruption's files exist and are valid."""
        ...

    def split(self, corruption: str, severity: int) -> Split:
        """The images at a severity from 1 to 5."""
        ...


class _Arrays:
    """The layout of CIFAR-10-C: one array per corruption."""

    def __init__(self, folder: Path, name: str, image_shape: tuple[int, ...], num_classes: int):
        self.folder, self.name, self.image_shape = folder, name, tuple(image_shape)
        labels, path = self._load(folder / LABELS), folder / LABELS
        if (
            labels.ndim != 1
            or not np.issubdtype(labels.dtype, np.integer)
            or not len(labels)
            or len(labels) % SEVERITIES
        ):
            raise InputError(
                f"{path} has {labels.dtype} of shape {labels.shape}; it must have the labels of the test images "
                f"{SEVERITIES} times: give {download(name)}"
            )
        parts = labels.reshape(SEVERITIES, -1)
        if (parts != parts[:1]).any() or parts.min() < 0 or parts.max() >= num_classes:
            raise InputError(
                f"{path} has labels from {parts.min()} to {parts.max()}, which must be those of {num_classes} classes "
                f"and the same {SEVERITIES} times: give {download(name)}"
            )
        self.labels = parts[0].astype(np.int32)

    def place(self, corruption: str) -> Path:
        return self.folder / f"{corruption}.npy"

    def check(self, corruption: str) -> None:
        path, images = self.place(corruption), self._load(self.place(corruption))
        expected = (SEVERITIES * len(self.labels), *self.image_shape)
        if images.dtype != np.uint8 or images.shape != expected:
            raise InputError(
                f"{path} has {images.dtype} of shape {images.shape}, but {self.name or 'the data set'} needs uint8 of "
                f"shape {expected}: give {download(self.name)}"
            )

    def split(self, corruption: str, severity: int) -> Split:
        each = len(self.labels)
        return Split(self._load(self.place(corruption))[(severity - 1) * each : severity * each], self.labels)

    def _load(self, path: Path) -> np.ndarray:
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist; unpack {download(self.name)} there") from None
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is not a whole .npy file ({error}); get {download(self.name)} again") from error


class _Folders:
    """The layout of ImageNet-C: one folder per corruption, severity and class."""

    def __init__(self, folder: Path, name: str, image_shape: tuple[int, ...], num_classes: int):
        self.folder, self.name, self.image_shape, self.num_classes = folder, name, tuple(image_shape), num_classes
        self.classes: list[str] = []

    def place(self, corruption: str) -> Path:
        inside = sorted(self.folder.glob(f"*/{corruption}"))
        return inside[0] if inside and not (self.folder / corruption).exists() else self.folder / corruption

    def check(self, corruption: str) -> None:
        for severity in range(1, SEVERITIES + 1):
            place = self.place(corruption) / str(severity)
            if not place.is_dir():
                raise InputError(f"{place} does not exist; unpack {download(self.name)} there")
            classes = class_folders(place)
            self.classes = self.classes or classes
            if classes != self.classes or len(classes) != self.num_classes:
                raise InputError(
                    f"{place} has {len(classes)} class folders, which must be the same {self.num_classes} everywhere; "
                    f"unpack {download(self.name)} again"
                )
            path = next((path for each in classes for path in image_files(place / each)), None)
            if path is None:
                raise InputError(f"{place} holds no image; unpack {download(self.name)} again")
            found = _encoded([path]).shape[1:]
            if found != self.image_shape:
                raise InputError(
                    f"{path} has shape {found}, but {self.name or 'the data set'} has images of shape "
                    f"{self.image_shape}; unpack {download(self.name)}"
                )

    def split(self, corruption: str, severity: int) -> Split:
        place = self.place(corruption) / str(severity)
        listed = [(path, number) for number, each in enumerate(self.classes) for path in image_files(place / each)]
        # Files are sorted by class; the first n should cover all classes.
        listed = [listed[index] for index in np.random.RandomState(0).permutation(len(listed))]
        images: Any = _encoded([path for path, _ in listed])
        return Split(images, np.array([number for _, number in listed], np.int32))


def _encoded(paths: list[Path]) -> EncodedImages:
    return EncodedImages([str(path) for path in paths], lambda index: paths[index].read_bytes())
