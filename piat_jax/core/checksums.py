"""Checksums of files, so that what a disk or a copy has damaged is noticed before it is used."""

import json
import zlib
from collections.abc import Collection
from pathlib import Path

from piat_jax.core.files import write_json

CHECKSUMS = "checksums.json"
BLOCK = 1 << 22


def crc32(path: Path) -> int:
    """The CRC-32 of a file's content: it differs after any flipped bit, at 2.5 GB/s on the machine it was chosen on."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total = zlib.crc32(block, total)
    return total


def write_checksums(folder: Path) -> None:
    """Write a checksum of every file below `folder` into a file of its own there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    write_json(folder / CHECKSUMS, {path.relative_to(folder).as_posix(): crc32(path) for path in paths})


def damage(folder: Path, parts: Collection[str] | None) -> str:
    """What is not as it was when `write_checksums` ran, or ""; only in the folders `parts` and in `folder` itself.

    Without `parts`, in all of them.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "weights").write_bytes(b"right")
    >>> write_checksums(folder)
    >>> damage(folder, ())
    ''
    >>> _ = (folder / "weights").write_bytes(b"light")
    >>> damage(folder, ())
    'weights is not what was written: its checksum differs'
    """
    try:
        written = json.loads((folder / CHECKSUMS).read_text())
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS} is damaged ({error})"
    if not isinstance(written, dict):
        return f"{CHECKSUMS} is damaged"
    for name, expected in written.items():
        top, slash, _ = name.partition("/")
        if slash and parts is not None and top not in parts:
            continue
        try:
            found = crc32(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
        if found != expected:
            return f"{name} is not what was written: its checksum differs"
    return ""
