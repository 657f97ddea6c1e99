"""Unpack a compressed .npz, block by block, so that its arrays can be memory-mapped."""

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded, write_file
from piat_jax.core.memory import in_units
from piat_jax.data.npz import BLOCK

EARLIEST = (1980, 1, 1, 0, 0, 0)


def unpack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the arrays of `source` to the new file `out` without compression, atomically.

    Args:
      source: an .npz file.
      out: a path that does not exist.
      on_block: called as `on_block(bytes done, bytes)`.

    Returns:
      The path of `out`.

    Raises:
      InputError: `source` is not an .npz file or damaged, `out` already exists, or the disk has too little space.
    """
    source, out = expanded(source), expanded(out)
    if out.exists():
        raise InputError(f"out={str(out)!r} already exists; give a new file")
    if not source.is_file():
        raise InputError(f"{source} does not exist; give the path of an .npz file")
    try:
        with zipfile.ZipFile(source) as archive:
            total = sum(member.file_size for member in archive.infolist())
            _check_space(out, total)
            write_file(out, lambda file: _copy(archive, file, lambda done: on_block(done, total)))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        out.with_name(f"{out.name}.partial").unlink(missing_ok=True)
        raise InputError(f"{source} cannot be read as .npz ({error}); copy it again") from error
    return out


def _check_space(out: Path, needed: int) -> None:
    if not out.parent.is_dir():
        raise InputError(f"out={str(out)!r} is in a missing folder; create {out.parent}, or give another file")
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise InputError(f"out={str(out)!r} needs {in_units(needed)}, and {in_units(free)} are free; free some space")


def _copy(archive: zipfile.ZipFile, file: BinaryIO, on_block: Callable[[int], None]) -> None:
    done = 0
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as unpacked:
        for member in archive.infolist():
            name = zipfile.ZipInfo(member.filename, EARLIEST)
            with archive.open(member) as packed, unpacked.open(name, "w", force_zip64=True) as target:
                while block := packed.read(BLOCK):
                    target.write(block)
                    done += len(block)
                    on_block(done)
