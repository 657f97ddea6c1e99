"""Tar files in webdataset's format: KEY.jpg and KEY.cls, the label as text, next to each other."""

import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.shards import check_different, check_shards
from piat_jax.data.class_folders import SUFFIXES
from piat_jax.data.records.base import Records, read_bytes

LABEL = ".cls"
HEADER = 512


class TarRecords(Records):
    """The images in uncompressed tar files, in order; each is read from its offset in the file.

    Args:
      paths: the shards.
      class_names: of the classes, or ().

    Raises:
      InputError: a file is damaged or compressed, an image has no label or a label no image, or a key occurs twice in a
        shard.
    """

    kind = "tar files with KEY.jpg and KEY.cls"

    def __init__(self, paths: Sequence[Path], class_names: Sequence[str] = ()):
        check_shards(paths)
        check_different(paths)
        self.paths = [str(path) for path in paths]
        places: list[tuple[int, int, int]] = []
        labels: list[int] = []
        for shard, path in enumerate(paths):
            for key, (offset, size, name), label in _scan(path):
                if label is None:
                    raise InputError(f"{path} has {name} without {key}{LABEL}; give each image a label, as text")
                places.append((shard, offset, size))
                labels.append(label)
        self.places = np.array(places, np.int64)  # [N, 3] shard, offset, size
        super().__init__(labels, class_names, self.paths[0])

    def read(self, index: int) -> bytes:
        """The bytes of an image file."""
        shard, offset, size = self.places[index].tolist()
        return read_bytes(self.paths[shard], offset, size)

    def name(self, index: int) -> str:
        """The tar file and the name in it, from the header before the image."""
        shard, offset, _ = self.places[index].tolist()
        try:
            header = tarfile.TarInfo.frombuf(read_bytes(self.paths[shard], offset - HEADER, HEADER), "utf-8", "replace")
        except (tarfile.TarError, InputError):
            return f"{self.paths[shard]} at byte {offset}"
        return f"{self.paths[shard]}: {header.name}"

    def file_names(self) -> list[str]:
        """The names in the tar files, which are scanned once more."""
        return [name for path in self.paths for _, (_, _, name), _ in _scan(Path(path))]


def _scan(path: Path) -> list[tuple[str, tuple[int, int, str], int | None]]:
    """The key, place and label of each image in a shard."""
    images: dict[str, tuple[int, int, str]] = {}
    labels: dict[str, int] = {}
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name = PurePosixPath(member.name)
                key, dot, _ = name.name.partition(".")
                key = str(name.parent / key)
                if not dot or name.name.startswith("."):
                    continue
                if member.offset_data + member.size > length:
                    raise InputError(f"{path} ends inside {member.name}; copy it again")
                if name.suffix.lower() in SUFFIXES:
                    if key in images:
                        raise InputError(f"{path} has two images with the key {key!r}; remove one")
                    images[key] = (member.offset_data, member.size, member.name)
                elif name.name[len(name.name.partition(".")[0]) :] == LABEL:
                    if key in labels:
                        raise InputError(f"{path} has {key}{LABEL} twice; remove one")
                    labels[key] = _label(path, member.name, read_bytes(str(path), member.offset_data, member.size))
                archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
    except tarfile.TarError as error:
        raise InputError(f"{path} cannot be read as tar ({error}); give a complete, uncompressed file") from error
    if alone := sorted(labels.keys() - images.keys()):
        raise InputError(f"{path} has {alone[0]}{LABEL} without an image; copy the file again")
    return [(key, place, labels.get(key)) for key, place in images.items()]


def _label(path: Path, name: str, text: bytes) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{path} has {text[:20]!r} in {name}; give a class index as text") from error
