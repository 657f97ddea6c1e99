"""CIFAR-10 and CIFAR-100 in the "python version", read without executing their pickles."""

import _codecs
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.data.places import not_found, roots
from piat_jax.data.types import Dataset, Split

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(CIFAR100_NAMES.split())
HOME = "https://www.cs.toronto.edu/~kriz"


def load_cifar10(data_dir: str | os.PathLike[str] = "") -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 images 32x32x3.

    Args:
      data_dir: the folder that holds cifar-10-batches-py (as torchvision leaves it) or cifar-10-python.tar.gz, or
        cifar-10-batches-py itself. Empty: `$PIAT_DATA_DIR` and ./data.

    Raises:
      InputError: files are missing, damaged, or name anything but arrays to be unpickled.
    """
    train = [f"data_batch_{number}" for number in range(1, 6)]
    files = read_files("cifar10", data_dir, "cifar-10-batches-py", "cifar-10-python.tar.gz", [*train, "test_batch"])
    splits = [to_split(path, content, b"labels") for path, content in files]
    return Dataset("cifar10", concatenate(splits[:-1]), splits[-1], 10, CIFAR10_CLASSES)


def load_cifar100(data_dir: str | os.PathLike[str] = "") -> Dataset:
    """CIFAR-100 (Krizhevsky, 2009) with its 100 fine labels: 50,000 + 10,000 images 32x32x3.

    Args:
      data_dir: the folder that holds cifar-100-python (as torchvision leaves it) or cifar-100-python.tar.gz, or
        cifar-100-python itself. Empty: `$PIAT_DATA_DIR` and ./data.

    Raises:
      InputError: files are missing, damaged, or name anything but arrays to be unpickled.
    """
    files = read_files("cifar100", data_dir, "cifar-100-python", "cifar-100-python.tar.gz", ["train", "test"])
    train, test = (to_split(path, content, b"fine_labels") for path, content in files)
    return Dataset("cifar100", train, test, 100, CIFAR100_CLASSES)


def read_files(
    name: str, data_dir: str | os.PathLike[str], folder_name: str, archive_name: str, files: list[str]
) -> list[tuple[str, Any]]:
    """`(path, unpickled content)` of each file, from the first folder or archive that is there."""
    tried = []
    for root in roots(data_dir):
        for folder in [root / folder_name, *([root] if str(data_dir) else [])]:
            paths = [folder / file for file in files]
            missing = [path for path in paths if not path.is_file()]
            if not missing:
                return [(str(path), safe_unpickle(str(path), path.read_bytes())) for path in paths]
            tried += missing
        archive = root / archive_name
        if archive.is_file():
            members = read_archive(archive, folder_name, files)
            return [(path, safe_unpickle(path, data)) for path, data in members]
        tried.append(archive)
    fix = f"download {HOME}/{archive_name} and give data_dir, the folder that holds it"
    raise not_found(name, tried, fix)


def read_archive(archive: Path, folder_name: str, files: list[str]) -> list[tuple[str, bytes]]:
    """`(path, bytes)` of each of `files` inside a .tar.gz; nothing is written to the disk."""
    found: dict[str, bytes] = {}
    try:
        # One pass in the archive's order: going back in a gzip stream means starting again.
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                wanted = member.isfile() and path.parent.name == folder_name and path.name in files
                content = tar.extractfile(member) if wanted else None
                if content is not None:
                    found[path.name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{archive} is not a whole .tar.gz ({error}); download it again") from error
    missing = [f"{folder_name}/{file}" for file in files if file not in found]
    if missing:
        raise InputError(f"{archive} lacks {', '.join(missing)}; download it again")
    return [(f"{archive}:{folder_name}/{file}", found[file]) for file in files]


# Everything the CIFAR pickles need; numpy.core is numpy 1's name of numpy._core, which numpy 2 warns about.
RECONSTRUCT = np.empty(0).__reduce__()[0]
ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _codecs.encode,
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers and arrays; any other global in the stream is refused before it is imported."""

    def __init__(self, path: str, data: bytes):
        super().__init__(io.BytesIO(data), encoding="bytes")
        self.path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The allowed global of this name, or InputError."""
        if (module_name, global_name) not in ALLOWED_GLOBALS:
            raise InputError(
                f"{self.path} wants to run {module_name}.{global_name}, which no CIFAR file does: it may be malicious; "
                f"delete it and download it again from {HOME}"
            )
        return ALLOWED_GLOBALS[module_name, global_name]


def safe_unpickle(path: str, data: bytes) -> Any:
    """The content of a pickle of containers and arrays, which runs no code of the file's choice.

    Args:
      path: names the file in errors.
      data: its bytes.

    Raises:
      InputError: the pickle is damaged or asks for any other global.
    """
    try:
        return ArrayUnpickler(path, data).load()
    except InputError:
        raise
    except Exception as error:  # A damaged pickle raises nearly anything.
        raise InputError(f"{path} is a damaged pickle ({error}); download it again") from error


def to_split(path: str, content: Any, labels_key: bytes) -> Split:
    """NHWC images and labels out of rows of 3072 bytes: a red, a green and a blue plane."""
    if not isinstance(content, dict) or b"data" not in content or labels_key not in content:
        raise InputError(f"{path} lacks 'data' or {labels_key.decode()!r}; give the python version of CIFAR")
    rows = content[b"data"]
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise InputError(f"{path}: data is {found}, not uint8 (N, 3072); give the python version of CIFAR")
    labels = np.asarray(content[labels_key])
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{path}: {labels_key.decode()} are not integers; give the python version of CIFAR")
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), labels.astype(np.int32))


def concatenate(splits: Iterable[Split]) -> Split:
    """The examples of several splits, in order."""
    images, labels = zip(*splits)
    return Split(np.concatenate(images), np.concatenate(labels))
