"""Atomic file writes: a file is written completely or not at all."""

import json
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from piat_jax.core.checks import InputError


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with a leading `~` or `~name` replaced by the home directory.

    Raises:
      InputError: the user does not exist.

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
    """A command to show to the user, quoted for a shell.

    >>> command("piat-evaluate", workdir="my runs/x")
    "piat-evaluate '--workdir=my runs/x'"
    """
    return shlex.join([name, *(f"--{flag}={value}" for flag, value in flags.items())])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file atomically."""
    write_file(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def write_file(path: str | os.PathLike[str], fill: Callable[[BinaryIO], Any]) -> None:
    """Write a file atomically; `fill` receives the open file and writes its content.

    Raises:
      InputError: the file cannot be written, for example on a full disk; the previous file is kept.
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
    """The error for a file or folder that cannot be written."""
    return InputError(f"{path} cannot be written: {error.strerror or error}; what was there before is kept")
