"""MNIST and Fashion-MNIST in their own format: idx files, gzipped or not."""

import gzip
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.data.places import not_found, roots
from piat_jax.data.types import Dataset, Split

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def load_fashion_mnist(data_dir: str | os.PathLike[str] = "") -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 images 28x28x1 of clothes.

    Args:
      data_dir: the folder with the four idx files, or the one above it. Empty: `$PIAT_DATA_DIR` and ./data (folders
        fashion-mnist, or FashionMNIST/raw as torchvision leaves it), then the Debian package's folder.

    Raises:
      InputError: files are missing, damaged, or do not belong together.
    """
    folders = candidate_folders(data_dir, ("fashion-mnist", "FashionMNIST/raw"))
    if not str(data_dir):
        folders.append(DEBIAN_FASHION_MNIST)
    train, test = read_folder(
        "fashion_mnist",
        folders,
        "`apt install dataset-fashion-mnist`, or give data_dir, the folder with the four idx files",
    )
    return Dataset("fashion_mnist", train, test, 10, FASHION_MNIST_CLASSES)


def load_mnist(data_dir: str | os.PathLike[str] = "") -> Dataset:
    """MNIST (LeCun et al., 1998): 60,000 + 10,000 images 28x28x1 of digits.

    Args:
      data_dir: the folder with the four idx files, or the one above it. Empty: `$PIAT_DATA_DIR` and ./data (folders
        mnist, or MNIST/raw as torchvision leaves it).

    Raises:
      InputError: files are missing, damaged, or do not belong together.
    """
    folders = candidate_folders(data_dir, ("mnist", "MNIST/raw"))
    train, test = read_folder("mnist", folders, "give data_dir, the folder with the four idx files")
    return Dataset("mnist", train, test, 10)


def candidate_folders(data_dir: str | os.PathLike[str], names: tuple[str, ...]) -> list[Path]:
    """The folders that may hold the four files."""
    folders = [root / name for root in roots(data_dir) for name in names]
    # Both data sets use the same file names, so a folder itself counts only where the user named it.
    return [*roots(data_dir), *folders] if str(data_dir) else folders


def read_folder(name: str, folders: Iterable[Path], fix: str) -> tuple[Split, Split]:
    """The training and test examples from the first folder that has all four files."""
    tried = []
    for folder in folders:
        found = [
            next((path for path in (folder / f"{file}.gz", folder / file) if path.is_file()), None) for file in FILES
        ]
        paths = [path for path in found if path]
        if len(paths) == len(FILES):
            return read_split(paths[0], paths[1]), read_split(paths[2], paths[3])
        tried += [folder / f"{file}[.gz]" for file, path in zip(FILES, found) if not path]
    raise not_found(name, tried, fix)


def read_split(images_path: Path, labels_path: Path) -> Split:
    """Images `[N, H, W, 1]` and labels `[N]` from a pair of idx files."""
    images = read_idx(images_path, rank=3)
    labels = read_idx(labels_path, rank=1)
    if len(images) != len(labels):
        raise InputError(
            f"{images_path} has {len(images)} images but {labels_path} {len(labels)} labels; "
            "give two files of the same download"
        )
    return Split(images[..., None], labels.astype(np.int32))


def read_idx(path: str | os.PathLike[str], *, rank: int) -> np.ndarray:
    """The uint8 array of an idx file, gunzipped if it is called .gz.

    Args:
      path: the file: magic number 0x0800 + rank, `rank` big-endian int32 sizes, then the bytes.
      rank: the number of axes to expect; 3 for images, 1 for labels.

    Raises:
      InputError: the file is missing, damaged, not an idx file, or of another rank.
    """
    path = Path(path)
    data = read_bytes(path)
    magic = struct.pack(">I", 0x0800 + rank)
    if data[:4] != magic:
        raise InputError(
            f"{path} starts with 0x{data[:4].hex()}, not 0x{magic.hex()}; "
            f"give an idx{rank}-ubyte file of {'images' if rank == 3 else 'labels'}"
        )
    header_size = 4 + 4 * rank
    if len(data) < header_size:
        raise InputError(f"{path} has {len(data)} bytes, less than its header of {header_size}; download it again")
    shape = struct.unpack(f">{rank}I", data[4:header_size])
    size = len(data) - header_size
    # Python's integers: a hostile header cannot overflow the product.
    expected = 1
    for axis in shape:
        expected *= axis
    if size != expected:
        raise InputError(f"{path} says {list(shape)}, {expected} bytes, but holds {size}; download it again")
    return np.frombuffer(data, np.uint8, offset=header_size).reshape(shape)


def read_bytes(path: Path) -> bytes:
    """The content of a file, gunzipped if it is called .gz."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except gzip.BadGzipFile as error:
        raise InputError(
            f"{path} is not gzip ({error}); download it again, or drop .gz if it is unpacked already"
        ) from error
    except EOFError as error:
        raise InputError(f"{path} is a truncated gzip file; download it again") from error
    except zlib.error as error:
        raise InputError(f"{path} is a damaged gzip file ({error}); download it again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
