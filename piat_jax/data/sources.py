"""Find a data set by name or path: which readers search where."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from piat_jax.core.checks import InputError, did_you_mean
from piat_jax.core.files import expanded
from piat_jax.data.cache import read_cache
from piat_jax.data.dataset_info import DATASETS
from piat_jax.data.npz import read_array_folder, read_npz
from piat_jax.data.parquet import read_parquet
from piat_jax.data.search_paths import Search, roots
from piat_jax.data.tfds_source import load_tfds, read_prepared
from piat_jax.data.types import Found

# isort: off
# The order in which named data sets are listed, and in which their readers try an unnamed folder.
from piat_jax.data import embedded, circles  # noqa: F401
from piat_jax.data.cifar import LAYOUTS, read_archive
from piat_jax.data import svhn  # noqa: F401
from piat_jax.data.folders import TEST_FOLDERS, read_image_folder
from piat_jax.data import idx  # noqa: F401
# isort: on

Reader = Callable[[Search, Path], Found | None]
"""Reads a folder in one format; returns None and records the missing files if the folder does not have this format."""

ANY: list[Reader] = [read_cache, read_array_folder, read_parquet, read_prepared, read_image_folder]
"""Readers of formats for any data set."""


def names() -> list[str]:
    """The names of all data sets.

    >>> names()[:4]
    ['embedded', 'circles', 'cifar10', 'cifar100']
    """
    return [*DATASETS, "npz"]


def check_name(name: str) -> None:
    """Raise InputError unless `name` is a data set's name or looks like a path.

    >>> check_name("cifar11")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: dataset='cifar11' is unknown; did you mean 'cifar10'? A path needs a / in it
    """
    if name in names() or name.startswith("tfds:") or is_path(name):
        return
    raise InputError(
        f"dataset={name!r} is unknown{did_you_mean(name, [*names(), 'tfds:NAME', 'a path'])} A path needs a / in it"
    )


def is_path(name: str) -> bool:
    """Whether `name` looks like a path, or is one."""
    return "/" in name or os.sep in name or name.startswith(("~", ".")) or Path(name).exists()


def find(name: str, data_dir: str | os.PathLike[str] = "") -> Found:
    """Read the data set `name` from the first place that holds it.

    Args:
      name: one of `names()`, "tfds:NAME", or the path of a folder or file, whose format is then detected.
      data_dir: folder with a named data set's files; empty = search the usual places.

    Raises:
      InputError: the name is unknown, nothing was found (every searched place is listed), or files cannot be used.
    """
    check_name(name)
    try:
        if name.startswith("tfds:"):
            return load_tfds(name.removeprefix("tfds:"), data_dir)
        if name in DATASETS:
            return _find_named(name, data_dir)
        if name == "npz":
            if not str(data_dir):
                raise InputError("data_dir is empty; give the path of an .npz file, or of a folder with some")
        elif str(data_dir):
            raise InputError(f"dataset={name!r} is a path; leave out data_dir={str(data_dir)!r}")
        return _find_path(expanded(data_dir if name == "npz" else name))
    except OSError as error:
        raise InputError(f"{error.filename or name} cannot be read: {error.strerror or error}") from error


def _find_named(name: str, data_dir: str | os.PathLike[str]) -> Found:
    """A named data set: generated, or read in the format that is found."""
    read, info = source = DATASETS[name]
    if source.is_made:
        if str(data_dir):
            raise InputError(f"data_dir={str(data_dir)!r} has no meaning for {name!r}; leave it out")
        if found := read():
            return found
        raise InputError(f"dataset={name!r}: its function returns nothing; let it return a piat_jax.data.Found")
    search = Search()
    for folder, readers in _places(name, data_dir):
        if not folder.is_dir():
            search.missing(folder)
            continue
        for reader in readers:
            if found := reader(search, folder):
                if found.name not in ("", name):
                    raise InputError(f"{found.where} holds {found.name}, not {name}; give its own name or folder")
                return found._replace(name=name)
    download = f"download {info.home}, and " if info else ""
    raise search.not_found(name, f"{download}give data_dir, the folder that holds it")


def _places(name: str, data_dir: str | os.PathLike[str]) -> Iterator[tuple[Path, list[Reader]]]:
    """The folders to search, each with its readers."""
    read, info = DATASETS[name]
    folders = info.names if info else (name,)
    for root in roots(data_dir):
        # A default root may hold several data sets whose files have the same names.
        if str(data_dir):
            yield root, [read, *ANY]
        elif info is None or info.in_root:
            yield root, [read]
        for folder in folders:
            yield root / folder, [read, *ANY]
    if not str(data_dir):
        tfds = expanded(os.environ.get("TFDS_DATA_DIR", "") or "~/tensorflow_datasets")
        for folder in folders:
            if "/" not in folder:
                yield tfds / folder, [read_prepared]
        if info and info.packaged:
            yield info.packaged, [read]


def _split_hint(path: Path) -> str:
    """What is wrong with a folder that is one split, or has only one; "" if it looks like neither."""
    tests = [name for name in TEST_FOLDERS if (path / name).is_dir()]
    if (path / "train").is_dir() and not tests:
        return f"{path} has train/ but no {'/, '.join(TEST_FOLDERS[:-1])}/ or {TEST_FOLDERS[-1]}/. "
    beside = path.resolve().parent / "train"
    if path.name in ("train", *TEST_FOLDERS) and beside.is_dir():
        whole = str(path.parent)
        return f"{path} is one part of a data set; did you mean {whole if os.sep in whole else f'./{whole}'}? "
    return ""


def _find_path(path: Path) -> Found:
    """Read the data set in a folder or file."""
    if path.is_dir():
        search = Search()
        named = (source.read for source in DATASETS.values() if not source.is_made)
        for reader in dict.fromkeys([*ANY[:-1], *named, ANY[-1]]):
            if found := reader(search, path):
                return found
        missing = search.not_found(f"a data set in {path}", "give the folder that holds one of these")
        raise InputError(f"{_split_hint(path)}{missing}")
    if not path.exists():
        raise InputError(f"{path} does not exist; give the path of a folder or file with a data set")
    if path.suffix == ".npz":
        return read_npz(path)
    for layout in LAYOUTS:
        if path.name == layout.archive:
            return read_archive(path, layout)
    known = ", ".join(layout.archive for layout in LAYOUTS)
    raise InputError(f"{path} is not a file with a complete data set; give a folder, an .npz file, or one of {known}")
