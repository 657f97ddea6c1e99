"""The named data sets: published facts, usual augmentation, and the readers of their files.

Each is declared next to its reader, by the decorator `dataset`.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from piat_jax.core.checks import InputError
from piat_jax.core.registry import Registry, check_parentheses
from piat_jax.data.types import Found

Read = TypeVar("Read", bound=Callable[..., Found | None])


class DatasetInfo(NamedTuple):
    """A published data set."""

    title: str
    image_shape: tuple[int, int, int]  # height, width, channels
    train: int  # examples
    test: int
    classes: int
    class_names: tuple[str, ...]  # () if numbers are the names, or if the files have them
    mean: tuple[float, ...]  # of the training pixels in [0, 1], per channel, with the usual rounding
    std: tuple[float, ...]
    crop_padding: int  # pixels, as usual in adversarial training; 0 = no crop
    flip: bool  # whether a mirrored image keeps its label; mirrored digits do not
    names: tuple[str, ...]  # names of its folder under a root: those of TFDS, the hubs and torchvision
    home: str  # where it is published
    in_root: bool = True  # whether its files identify it, so that they may be in a root itself
    packaged: Path | None = None  # where an operating system's package puts its files


class EncodedInfo(NamedTuple):
    """A published data set of images of many sizes, in a user's folder that is recognised by its name."""

    title: str
    train: int  # examples
    test: int  # with labels
    classes: int
    folders: tuple[str, ...]  # usual names of such a folder


ENCODED = (
    EncodedInfo("ImageNet-1k", 1_281_167, 50_000, 1000, ("imagenet", "imagenet2012", "imagenet-1k", "ilsvrc2012")),
)
"""Encoded data sets for which a run can be planned without the data."""


class Source(NamedTuple):
    """The source of a named data set."""

    read: Callable[..., Found | None]
    info: DatasetInfo | None

    @property
    def is_made(self) -> bool:
        """Whether the data set is generated without files; its reader then takes no arguments."""
        return not inspect.signature(self.read).parameters


DATASETS: Registry[Source] = Registry("dataset")
"""All named data sets."""

KNOWN: dict[str, DatasetInfo] = {}
"""The facts on the published data sets, by name."""


def dataset(
    name: str, info: DatasetInfo | None = None, *, title: str = "", summary: str = "", paper: str = ""
) -> Callable[[Read], Read]:
    """A decorator for the function that reads the data set `name`; use one decorator per name.

    The function is `read(search, folder) -> Found | None`: it reads the data set in a folder, or reports missing files
    to `search.missing` or `search.files` and returns None. It is called for each folder that may hold the data set. A
    function without arguments generates its data set without files. Decorators act from the lowest up, so the lowest
    name comes first.

    Args:
      name: its name in configs.
      info: the published facts; classes and image shape are then checked. None for your own data, which is searched
        for in the data folders and in subfolders with its name.
      title, summary, paper: as for `Registry.register`; the title is that of `info`, if given.

    Raises:
      InputError: the name is already used, or the decorator has no parentheses.

    >>> @dataset("empty", summary="Never found.")
    ... def read_empty(search, folder):
    ...     search.missing(folder / "empty.bin")
    >>> DATASETS.pop("empty").is_made
    False
    """
    check_parentheses(DATASETS.kind, name)

    def add(read: Read) -> Read:
        title_of = title or (info.title if info else "")
        DATASETS.register(name, title=title_of, summary=summary, paper=paper)(Source(read, info))
        if info:
            KNOWN[name] = info
        return read

    return add


def check_published(name: str, image_shape: tuple[int, ...], classes: int) -> None:
    """Raise InputError unless image shape and number of classes are those of the named data set; other names pass.

    >>> check_published("cifar10", (32, 32, 3), 100)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: cifar10 has 10 classes, but these files have 100; give the files of CIFAR-10
    """
    known = KNOWN.get(name)
    if known is None:
        return
    if image_shape != known.image_shape:
        raise InputError(
            f"{name} has images {known.image_shape}, but these files have {image_shape}; "
            f"give the files of {known.title}"
        )
    if classes != known.classes:
        raise InputError(
            f"{name} has {known.classes} classes, but these files have {classes}; give the files of {known.title}"
        )
