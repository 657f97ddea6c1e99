"""Lists of images, such as RobustBench's 5,000 of ImageNet: one `CLASS/FILE` per line."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded
from piat_jax.data.records.base import Records

SHOWN = 3
"""Maximum number of names in a message."""
WNID = re.compile(r"n\d{8}")
"""ImageNet's class identifiers."""


class Listed(NamedTuple):
    """An image that a list names."""

    label: str  # the image's class
    file: str

    def __str__(self) -> str:
        return f"{self.label}/{self.file}"


def listed(records: Records, path: str | Path) -> np.ndarray:
    """The numbers `[n]` of the images in a list, in the list's order.

    In class folders, images are found by class and file; elsewhere by the file's name without folder and suffix, where
    `NAME_CLASS`, as in the Hugging Face hub's ImageNet, also matches NAME.

    Args:
      records: the images to search in.
      path: of the list.

    Raises:
      InputError: the list cannot be read; a name is missing in `records`, or occurs twice there or in the list; or its
        class differs from the label, if classes are named by their wnids.
    """
    wanted = read_list(path)
    by_class = records.in_class_folders
    keys = [str(each) if by_class else _stem(each.file) for each in wanted]
    _refuse(path, "names twice", _repeated(keys))
    places = {key: place for place, key in enumerate(keys)}
    if not by_class:
        places |= {f"{key}_{each.label}": place for place, (key, each) in enumerate(zip(keys, wanted))}
    found = np.full(len(wanted), -1)
    several = []
    for number, name in enumerate(records.file_names()):
        pure = PurePosixPath(name)
        place = places.get(f"{pure.parts[0]}/{pure.name}" if by_class else _stem(name)) if name else None
        if place is None:
            continue
        if found[place] >= 0:
            several.append(str(wanted[place]))
        found[place] = number
    _refuse(path, f"has names that match several images of {records.where}:", several)
    missing = [str(wanted[place]) for place in np.flatnonzero(found < 0)]
    _refuse(path, f"names what {records.where} does not have:", missing, "; give the list of these images")
    names = records.class_names
    if names and all(map(WNID.fullmatch, names)):
        labels = records.labels[found].tolist()
        _refuse(
            path,
            f"names other classes than {records.where} has:",
            [
                f"{each} is of {names[label]}"
                for each, label in zip(wanted, labels)
                if label >= len(names) or each.label != names[label]
            ],
        )
    return found


def read_list(path: str | Path) -> list[Listed]:
    """Read the images in a list; empty lines and lines that begin with # are skipped.

    Raises:
      InputError: the file cannot be read, lists no images, or has a line that is not CLASS/FILE.
    """
    path = expanded(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"test_list={str(path)!r} cannot be read: {why}; give a text file of CLASS/FILE") from error
    found = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        parts = PurePosixPath(text).parts
        if len(parts) < 2:
            raise InputError(f"test_list={str(path)!r} has {text!r} in line {number}; give CLASS/FILE")
        found.append(Listed(*parts[-2:]))
    if not found:
        raise InputError(f"test_list={str(path)!r} lists no image; give one CLASS/FILE per line")
    return found


def _stem(name: str) -> str:
    """A file's name without folder and suffix.

    >>> _stem("val/ILSVRC2012_val_00000293.JPEG")
    'ILSVRC2012_val_00000293'
    """
    return PurePosixPath(name).stem


def _repeated(keys: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]


def _refuse(path: str | Path, what: str, names: Sequence[str], fix: str = "") -> None:
    if names:
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        raise InputError(f"test_list={str(path)!r} {what} {shown} ({len(names)} in all){fix}")
