"""Folders of image files of any size, one folder per class."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.data.class_folders import SUFFIXES, class_folders
from piat_jax.data.records.base import Records, read_bytes


class FolderRecords(Records):
    """The image files in FOLDER/CLASS/ and its subfolders, sorted by name.

    Args:
      folder: of the split.
      classes: the names of the class folders, in the order of their numbers; () = all class folders, sorted.

    Raises:
      InputError: a class has no images, or is not among `classes`.
    """

    kind = "folders of images, FOLDER/CLASS/*.jpg"
    in_class_folders = True

    def __init__(self, folder: Path, classes: Sequence[str] = ()):
        there = class_folders(folder)
        classes = classes or there
        if unknown := sorted(set(there) - set(classes)):
            raise InputError(
                f"{folder / unknown[0]} is a class that the training images do not have; check its spelling, or "
                "remove it"
            )
        self.folder = str(folder)
        files, labels = [], []
        for number, name in enumerate(classes):
            found = sorted(_images(folder / name, name))
            if not found:
                raise InputError(f"{folder / name} holds no image; every class needs one of {', '.join(SUFFIXES)}")
            files += map(os.fsencode, found)
            labels += [number] * len(found)
        self.files = np.array(files)  # bytes of one length, so that there is no Python object per file
        super().__init__(labels, classes, str(folder))

    def read(self, index: int) -> bytes:
        """The bytes of an image file."""
        return read_bytes(self.name(index))

    def name(self, index: int) -> str:
        """The file's path."""
        return os.path.join(self.folder, os.fsdecode(self.files[index]))

    def file_names(self) -> list[str]:
        """CLASS/FILE or CLASS/FOLDER/FILE for each image."""
        return [os.fsdecode(name) for name in self.files]


def _images(folder: Path, prefix: str) -> list[str]:
    """The image files below a folder, as paths that begin with `prefix`."""
    found = []
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    found += _images(Path(entry.path), f"{prefix}/{entry.name}")
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                    found.append(f"{prefix}/{entry.name}")
    return found
