"""Files that are written whole or not at all, whatever happens meanwhile."""

import json
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from piat_jax.core.checks import InputError


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` and `~name` at its beginning replaced by a home directory.

    Raises:
      InputError: there is no such user.

    >>> expanded("runs/x").as_posix(), expanded("~/runs") == Path.home() / "runs"
    ('runs/x', True)
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{os.fspath(path)!r} names a home directory that does not exist; write the path out"
        ) from error


def command(name: str, **flags: object) -> str:
    """A command to be shown, quoted so that a shell takes it as it is meant.

    >>> command("piat-evaluate", workdir="my runs/x")
    "piat-evaluate '--workdir=my runs/x'"
    """
    return shlex.join([name, *(f"--{flag}={value}" for flag, value in flags.items())])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz whole or not at all."""
    write_file(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def write_file(path: str | os.PathLike[str], fill: Callable[[BinaryIO], Any]) -> None:
    """Write what `fill` puts into the file it is given, whole or not at all.

    Raises:
      InputError: it cannot be written, as on a full disk; what was there before still is.
    """
    path = expanded(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    """What is said of a file or folder that cannot be written."""
    return InputError(f"{path} cannot be written: {error.strerror or error}; what was there before is kept")
