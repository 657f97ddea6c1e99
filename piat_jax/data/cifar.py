"""Readers of CIFAR-10 and CIFAR-100: the "python version", without executing its pickles, and the "binary version"."""

import _codecs
import gzip
import io
import itertools
import pickle
import pickletools
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.data.dataset_info import KNOWN, DatasetInfo, dataset
from piat_jax.data.search_paths import Search
from piat_jax.data.types import Found, Split

CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class Layout(NamedTuple):
    """One of the published folders and its archive."""

    name: str
    folder: str
    archive: str
    files: tuple[str, ...]  # the last one holds the test examples
    parse: Callable[[str, bytes], Split]


def read_cifar(search: Search, folder: Path, layout: Layout) -> Found | None:
    """Read a layout in `folder`: as a subfolder, as an archive, or as files."""
    for place in (folder / layout.folder, folder) if folder.name != layout.folder else (folder,):
        if (place / layout.files[0]).exists() or place.name == layout.folder:
            paths = search.files(place, layout.files)
            if paths:
                return to_found(layout, place, {path.name: (str(path), path.read_bytes()) for path in paths})
    archive = search.file(folder / layout.archive)
    return read_archive(archive, layout) if archive else None


def to_found(layout: Layout, where: Path, contents: Mapping[str, tuple[str, bytes]]) -> Found:
    """The examples in all files of a layout, given as `name -> (path, bytes)`."""
    for file, other in itertools.combinations(layout.files, 2):
        if contents[file][1] == contents[other][1]:
            raise InputError(f"{contents[other][0]} is a copy of {file}; download it again")
    splits = [layout.parse(*contents[file]) for file in layout.files]
    return Found(concatenate(splits[:-1]), splits[-1], str(where), layout.name)


def read_archive(archive: Path, layout: Layout) -> Found:
    """Read the examples in a .tar.gz without writing to the disk."""
    found: dict[str, tuple[str, bytes]] = {}
    try:
        # One pass in the archive's order, as seeking back in a gzip stream restarts it.
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                wanted = member.isfile() and path.parent.name == layout.folder and path.name in layout.files
                content = tar.extractfile(member) if wanted else None
                if content is not None:
                    found[path.name] = (f"{archive}:{layout.folder}/{path.name}", content.read())
            while unpacked.read(1 << 20):  # up to the checksum at the end, which tarfile does not check
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError) as error:
        raise InputError(f"{archive} is not a complete .tar.gz ({error}); download it again") from error
    missing = [f"{layout.folder}/{file}" for file in layout.files if file not in found]
    if missing:
        raise InputError(f"{archive} lacks {', '.join(missing)}; download it again")
    return to_found(layout, archive, found)


# All globals that CIFAR pickles need; numpy.core is numpy 1's name of numpy._core, which numpy 2 warns about.
RECONSTRUCT = np.empty(0).__reduce__()[0]
ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _codecs.encode,
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers and arrays; rejects any other global in the stream before importing it."""

    def __init__(self, path: str, data: bytes):
        super().__init__(io.BytesIO(data), encoding="bytes")
        self.path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the allowed global with this name, or raise InputError."""
        if (module_name, global_name) not in ALLOWED_GLOBALS:
            raise InputError(
                f"{self.path} wants to run {module_name}.{global_name}, which no CIFAR file does: it may be malicious; "
                f"delete it and download it again from {KNOWN['cifar10'].home}"
            )
        return ALLOWED_GLOBALS[module_name, global_name]


def safe_unpickle(path: str, data: bytes) -> Any:
    """Load a pickle of containers and arrays without running code from the file.

    Args:
      path: the file's name in errors.
      data: its bytes.

    Raises:
      InputError: the pickle is damaged or requests any other global.
    """
    try:
        check_memo(data)
        return ArrayUnpickler(path, data).load()
    except InputError:
        raise
    except Exception as error:  # A damaged pickle can raise almost any exception.
        raise InputError(f"{path} is a damaged pickle ({error}); download it again") from error


def check_memo(data: bytes) -> None:
    """Raise ValueError if a pickle's memo index exceeds its number of objects, as it would allocate as much memory."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count:
            raise ValueError(f"object {count} has number {argument}")


def parse_pickle(path: str, data: bytes, labels_key: bytes) -> Split:
    """The examples in a batch file of the python version."""
    return to_split(path, safe_unpickle(path, data), labels_key)


def parse_binary(path: str, data: bytes, label_bytes: int) -> Split:
    """The examples in a batch file of the binary version: records of labels (the last one counts) and 3072 pixels."""
    size = label_bytes + 3072
    if not data or len(data) % size:
        raise InputError(f"{path} has {len(data)} bytes, which is not a multiple of {size}; download it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    return Split(to_images(records[:, label_bytes:]), records[:, label_bytes - 1].astype(np.int32))


def to_images(rows: np.ndarray) -> np.ndarray:
    """NHWC images from rows of 3072 bytes: a red, a green and a blue plane."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def to_split(path: str, content: Any, labels_key: bytes) -> Split:
    """The examples of an unpickled batch."""
    if not isinstance(content, dict) or b"data" not in content or labels_key not in content:
        raise InputError(f"{path} lacks 'data' or {labels_key.decode()!r}; give the python version of CIFAR")
    rows = content[b"data"]
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise InputError(f"{path}: data is {found}, not uint8 (N, 3072); give the python version of CIFAR")
    labels = np.asarray(content[labels_key])
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{path}: {labels_key.decode()} are not integers; give the python version of CIFAR")
    return Split(to_images(rows), labels.astype(np.int32))


def concatenate(splits: Iterable[Split]) -> Split:
    """The examples of several splits, in order."""
    images, labels = zip(*splits)
    return Split(np.concatenate(images), np.concatenate(labels))


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = (
    Layout(
        "cifar10",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        (*BATCHES, "test_batch"),
        lambda path, data: parse_pickle(path, data, b"labels"),
    ),
    Layout(
        "cifar100",
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        ("train", "test"),
        lambda path, data: parse_pickle(path, data, b"fine_labels"),
    ),
    Layout(
        "cifar10",
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        tuple(f"{batch}.bin" for batch in (*BATCHES, "test_batch")),
        lambda path, data: parse_binary(path, data, 1),
    ),
    Layout(
        "cifar100",
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        ("train.bin", "test.bin"),
        lambda path, data: parse_binary(path, data, 2),  # the coarse label, then the fine one
    ),
)


@dataset(
    "cifar10",
    DatasetInfo(
        title="CIFAR-10",
        image_shape=(32, 32, 3),
        train=50_000,
        test=10_000,
        classes=10,
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        crop_padding=4,
        flip=True,
        names=("cifar10",),
        home="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    summary="Ten classes of small colour photographs.",
    paper="Krizhevsky (2009), Learning multiple layers of features from tiny images",
)
def read_cifar10(search: Search, folder: Path) -> Found | None:
    """Read CIFAR-10 in `folder`, trying the python version before the binary one."""
    return read_layouts(search, folder, "cifar10")


@dataset(
    "cifar100",
    DatasetInfo(
        title="CIFAR-100 (fine labels)",
        image_shape=(32, 32, 3),
        train=50_000,
        test=10_000,
        classes=100,
        class_names=tuple(CIFAR100_NAMES.split()),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        crop_padding=4,
        flip=True,
        names=("cifar100",),
        home="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    summary="A hundred classes of small colour photographs.",
    paper="Krizhevsky (2009), Learning multiple layers of features from tiny images",
)
def read_cifar100(search: Search, folder: Path) -> Found | None:
    """Read CIFAR-100 in `folder`, trying the python version before the binary one."""
    return read_layouts(search, folder, "cifar100")


def read_layouts(search: Search, folder: Path, name: str) -> Found | None:
    """Read a data set in `folder`, in the first of its layouts that is found."""
    tried = (read_cifar(search, folder, layout) for layout in LAYOUTS if layout.name == name)
    return next((found for found in tried if found), None)
