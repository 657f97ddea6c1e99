"""Readers of MNIST and Fashion-MNIST in their original format: idx files, gzipped or not."""

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.data.dataset_info import DatasetInfo, dataset
from piat_jax.data.search_paths import Search
from piat_jax.data.types import Found, Split

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataset(
    "mnist",
    DatasetInfo(
        title="MNIST",
        image_shape=(28, 28, 1),
        train=60_000,
        test=10_000,
        classes=10,
        class_names=(),
        mean=(0.1307,),
        std=(0.3081,),
        crop_padding=0,
        flip=False,
        names=("mnist", "MNIST/raw"),
        home="http://yann.lecun.com/exdb/mnist: the four idx files",
        in_root=False,
    ),
    summary="Handwritten digits.",
    paper="LeCun et al. (1998), Gradient-based learning applied to document recognition",
)
@dataset(
    "fashion_mnist",
    DatasetInfo(
        title="Fashion-MNIST",
        image_shape=(28, 28, 1),
        train=60_000,
        test=10_000,
        classes=10,
        class_names=tuple(CLOTHES.split(",")),
        mean=(0.2860,),
        std=(0.3530,),
        crop_padding=2,
        flip=True,
        names=("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
        home="https://github.com/zalandoresearch/fashion-mnist: the four idx files, or `apt install "
        "dataset-fashion-mnist`",
        in_root=False,
        packaged=DEBIAN_FASHION_MNIST,
    ),
    summary="Ten types of clothes, in the format of MNIST.",
    paper="Xiao et al. (2017), arXiv:1708.07747",
)
def read_idx_folder(search: Search, folder: Path) -> Found | None:
    """Read MNIST or Fashion-MNIST in `folder`; both use the same names for their four files."""
    either = [[folder / f"{file}.gz", folder / file] for file in FILES]
    paths = [path for pair in either for path in pair[: 1 if pair[0].is_file() else 2] if path.is_file()]
    if len(paths) < len(FILES):
        search.missing(*(f"{file}[.gz]" for zipped, file in either if not zipped.is_file() and not file.is_file()))
        return None
    return Found(read_split(paths[0], paths[1]), read_split(paths[2], paths[3]), str(folder))


def read_split(images_path: Path, labels_path: Path) -> Split:
    """Read images `[N, H, W, 1]` and labels `[N]` from a pair of idx files."""
    images = read_idx(images_path, rank=3)
    labels = read_idx(labels_path, rank=1)
    if len(images) != len(labels):
        raise InputError(
            f"{images_path} has {len(images)} images but {labels_path} {len(labels)} labels; "
            "give two files from the same download"
        )
    return Split(images[..., None], labels.astype(np.int32))


def read_idx(path: str | os.PathLike[str], *, rank: int) -> np.ndarray:
    """Read the uint8 array of an idx file; a .gz file is decompressed.

    Args:
      path: the file: magic number 0x0800 + rank, `rank` big-endian int32 sizes, then the bytes.
      rank: the number of axes to expect; 3 for images, 1 for labels.

    Raises:
      InputError: the file is missing, damaged, not an idx file, or has another rank.
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
    # With Python's integers, a malicious header cannot overflow the product.
    expected = 1
    for axis in shape:
        expected *= axis
    if size != expected:
        raise InputError(f"{path} says {list(shape)}, {expected} bytes, but holds {size}; download it again")
    return np.frombuffer(data, np.uint8, offset=header_size).reshape(shape)


def read_bytes(path: Path) -> bytes:
    """The content of a file; a .gz file is decompressed."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except gzip.BadGzipFile as error:
        raise InputError(
            f"{path} is not gzip ({error}); download it again, or drop .gz if it is already unpacked"
        ) from error
    except EOFError as error:
        raise InputError(f"{path} is a truncated gzip file; download it again") from error
    except zlib.error as error:
        raise InputError(f"{path} is a damaged gzip file ({error}); download it again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
