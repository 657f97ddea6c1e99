"""Readers of data sets as NumPy arrays, in .npz or .npy files: the simplest format for your own data."""

import struct
import zipfile
from pathlib import Path

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import command, expanded
from piat_jax.core.memory import host_memory, in_units
from piat_jax.data.search_paths import Search
from piat_jax.data.types import Found, Split

KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
PAIR_FILES = ("train.npz", "test.npz")
PAIR_KEYS = ("image", "label")
MAX_CLASSES = 100_000
"""A label above this is an identifier, not a class."""
BLOCK = 1 << 22
VERIFIED_BYTES = 1 << 32
"""For generated examples: checksums of larger arrays are not verified, as this would read the entire array."""
MOST_CHANNELS = 4
"""For images: a second axis of at most this length before two longer ones is taken for channels first."""


def read_npz(path: Path) -> Found:
    """Read the data set in one .npz file, under one of `KEYS`.

    Images are uint8 `[N, H, W, C]` or `[N, H, W]`, labels integers `[N]` or `[N, 1]`. Uncompressed arrays are
    memory-mapped.

    Raises:
      InputError: the file does not exist or holds something else.
    """
    arrays = read_arrays(path)
    keys = next((keys for keys in KEYS if set(keys) <= set(arrays)), None)
    if keys is None:
        raise InputError(
            f"{path} has {', '.join(sorted(arrays)) or 'no arrays'}; give {' or '.join(map(', '.join, KEYS))}"
        )
    return Found(to_split(path, arrays, *keys[:2]), to_split(path, arrays, *keys[2:]), str(path))


def read_array_folder(search: Search, folder: Path) -> Found | None:
    """Read train.npz and test.npz (image, label), or four .npy files named as in `KEYS`, in `folder`."""
    paths = search.files(folder, PAIR_FILES)
    if paths:
        train, test = (to_split(path, read_arrays(path), *PAIR_KEYS) for path in paths)
        return Found(train, test, str(folder))
    for keys in KEYS:
        paths = search.files(folder, [f"{key}.npy" for key in keys])
        if paths:
            arrays = {key: map_array(path) for key, path in zip(keys, paths)}
            return Found(to_split(folder, arrays, *keys[:2]), to_split(folder, arrays, *keys[2:]), str(folder))
    return None


def read_examples(path: Path) -> Split:
    """Read the examples in one .npz file with image and label, such as the published sets of generated images.

    In an uncompressed file, images are memory-mapped, even 150 GB of them; checksums of arrays above `VERIFIED_BYTES`
    are not verified.

    Raises:
      InputError: the file does not exist, holds something else, or is compressed and does not fit into memory.

    Source: the format of Gowal et al. (2021), arXiv:2110.09468 (cifar10_ddpm.npz), and Wang et al. (2023),
    arXiv:2302.04638 (1m.npz, 50m_part1.npz, ...).
    """
    path = expanded(path)
    return to_split(path, read_arrays(path, verified=VERIFIED_BYTES), *PAIR_KEYS)


def unpacking(path: Path) -> str:
    """The command that unpacks a compressed file so that it can be memory-mapped."""
    return "piat-data unpack " + command(str(path), out=path.with_name(f"{path.stem}_mapped.npz"))


def read_arrays(path: Path, *, verified: float = float("inf")) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file; checksums up to `verified` bytes are verified, pickled objects rejected."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the path of an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_memory(path, archive)
            return {member.filename.removesuffix(".npy"): read_member(path, archive, member, verified=verified)
                    for member in archive.infolist()}  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # Damaged zip files and array headers can raise almost any exception.
        raise InputError(
            f"{path} cannot be read as .npz without pickle ({error}); copy it again, or write plain arrays"
        ) from error


def _check_memory(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise InputError if the arrays to unpack are larger than this machine's memory."""
    size = sum(member.file_size for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED)
    there = host_memory()
    if there is not None and size > there:
        raise InputError(
            f"{path} is compressed, and its {in_units(size)} do not fit into the {in_units(there)} of memory; "
            f"unpack it to a file that can be mapped: {unpacking(path)}"
        )


def read_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, verified: float = float("inf")
) -> np.ndarray:
    """Read one array: memory-mapped if uncompressed, else unpacked; its checksum is verified up to `verified` bytes."""
    with archive.open(member) as file:
        shape, fortran, dtype = read_header(file)
        if member.compress_type != zipfile.ZIP_STORED:
            data = file.read()
            array = np.frombuffer(data, dtype)
            return array.reshape(shape, order="F" if fortran else "C")
        header_size = file.tell()
        while member.file_size <= verified and file.read(BLOCK):
            pass
    with path.open("rb") as raw:
        raw.seek(member.header_offset + 26)
        name_size, extra_size = struct.unpack("<HH", raw.read(4))
    start = member.header_offset + 30 + name_size + extra_size
    return map_file(path, start + header_size, start + member.file_size, dtype, shape, fortran)


def map_array(path: Path) -> np.ndarray:
    """Memory-map the array in an .npy file; pickled objects are rejected.

    Raises:
      InputError: the file is missing, damaged, or holds objects.
    """
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = read_header(file)
            return map_file(path, file.tell(), path.stat().st_size, dtype, shape, fortran)
    except InputError:
        raise
    except Exception as error:  # A damaged header can raise almost any exception.
        raise InputError(f"{path} cannot be read as .npy without pickle ({error}); write a plain array") from error


def read_header(file: object) -> tuple[tuple[int, ...], bool, np.dtype]:
    """`(shape, whether in Fortran's order, dtype)` of an array in NumPy's format."""
    version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format is unknown")
    shape, fortran, dtype = read(file)  # type: ignore[arg-type]
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, fortran, dtype


def map_file(path: Path, start: int, end: int, dtype: np.dtype, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    """Memory-map the bytes from `start` to `end` as an array; InputError if their number is wrong."""
    expected = dtype.itemsize
    for axis in shape:
        expected *= axis
    if end - start != expected:
        raise InputError(f"{path} says {list(shape)} {dtype}, {expected} bytes, but holds {end - start}; copy it again")
    if not expected:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def to_split(path: Path, arrays: dict[str, np.ndarray], images_key: str, labels_key: str) -> Split:
    """The examples under two keys, with a channel axis and int32 labels."""
    for key in (images_key, labels_key):
        if key not in arrays:
            raise InputError(f"{path} has no array {key!r}, only {', '.join(sorted(arrays)) or 'nothing'}; add it")
    images, labels = arrays[images_key], arrays[labels_key]
    if images.dtype != np.uint8:
        raise InputError(
            f"{path}: {images_key} has dtype {images.dtype}; give uint8 in [0, 255]; "
            "convert floats in [0, 1] by np.rint(255 * x).astype(np.uint8)" + count_nan(images)
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{path}: {labels_key} has dtype {labels.dtype}; give integers, one class index per image")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    # Before the cast, so that an int64 label cannot wrap around to a valid one.
    for label in (labels.min(initial=0), labels.max(initial=0)):
        if not 0 <= label < MAX_CLASSES:
            raise InputError(f"{path}: {labels_key} has label {label}; give class indices in [0, {MAX_CLASSES})")
    if images.ndim == 4 and images.shape[1] <= MOST_CHANNELS < min(images.shape[2:]):
        raise InputError(
            f"{path}: {images_key} has shape {images.shape}, channels first; give [N, H, W, C]: x.transpose(0, 2, 3, 1)"
        )
    return Split(images[..., None] if images.ndim == 3 else images, np.array(labels, np.int32))


def count_nan(images: np.ndarray) -> str:
    """An addition to the message if floats contain NaN."""
    count = int(np.isnan(images).sum()) if np.issubdtype(images.dtype, np.floating) else 0
    return f", after replacing the {count} NaN values" if count else ""
