"""The named data sets: what was published, what training on it usually does, and who reads its files.

Each is declared where its reader is, by the decorator `dataset`.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from piat_jax.core.checks import InputError
from piat_jax.core.registry import Registry
from piat_jax.data.types import Found

Read = TypeVar("Read", bound=Callable[..., Found | None])


class DatasetInfo(NamedTuple):
    """A published data set."""

    title: str
    image_shape: tuple[int, int, int]  # height, width, channels
    train: int  # examples
    test: int
    classes: int
    class_names: tuple[str, ...]  # () where numbers are the names, or the files have them
    mean: tuple[float, ...]  # of the training pixels in [0, 1], per channel, as its users round them
    std: tuple[float, ...]
    crop_padding: int  # pixels, as adversarial training usually crops it; 0 = not
    flip: bool  # whether a mirrored image keeps its label: a mirrored digit is no digit
    names: tuple[str, ...]  # folders it is kept in under a root, as TFDS, the hubs and torchvision call it
    home: str  # where it is published
    in_root: bool = True  # whether its files tell it from others, so that they may lie in a root itself
    packaged: Path | None = None  # where a package of the operating system puts its files


class EncodedInfo(NamedTuple):
    """A published data set of images of many sizes, which lies in a folder of the user's and is known by its name."""

    title: str
    train: int  # examples
    test: int  # with labels
    classes: int
    folders: tuple[str, ...]  # what such a folder is mostly called


ENCODED = (
    EncodedInfo("ImageNet-1k", 1_281_167, 50_000, 1000, ("imagenet", "imagenet2012", "imagenet-1k", "ilsvrc2012")),
)
"""What a run on encoded images can be planned for without having them."""


class Source(NamedTuple):
    """Where a named data set comes from."""

    read: Callable[..., Found | None]
    info: DatasetInfo | None

    @property
    def is_made(self) -> bool:
        """Whether it is made without files: then its reader takes no arguments."""
        return not inspect.signature(self.read).parameters


DATASETS: Registry[Source] = Registry("dataset")
"""Every data set that has a name."""

KNOWN: dict[str, DatasetInfo] = {}
"""What was published, of those that were."""


def dataset(
    name: str, info: DatasetInfo | None = None, *, title: str = "", summary: str = "", paper: str = ""
) -> Callable[[Read], Read]:
    """A decorator for the function that reads the data set `name`; one for each of several names.

    The function is `read(search, folder) -> Found | None`: it reads what the folder holds, or notes what is not there
    with `search.missing` or `search.files` and returns None. It is asked for each folder the data set may be in. One
    without arguments makes its data set without files. Decorators act from the lowest up, so the lowest name comes
    first.

    Args:
      name: what configs call it.
      info: what was published; its classes and the shape of its images are then checked. None for data of your own,
        which is looked for in the data folders and in folders of its name.
      title, summary, paper: as `Registry.register` takes them; the title is that of `info` where there is one.

    Raises:
      InputError: the name is taken.

    >>> @dataset("empty", summary="Never found.")
    ... def read_empty(search, folder):
    ...     search.missing(folder / "empty.bin")
    >>> DATASETS.pop("empty").is_made
    False
    """

    def add(read: Read) -> Read:
        title_of = title or (info.title if info else "")
        DATASETS.register(name, title=title_of, summary=summary, paper=paper)(Source(read, info))
        if info:
            KNOWN[name] = info
        return read

    return add


def check_published(name: str, image_shape: tuple[int, ...], classes: int) -> None:
    """Raise InputError unless images and classes are those of the named data set; other names pass.

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
