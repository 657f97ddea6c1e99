"""Where data sets are looked for, and the error when they are not there."""

import os
from collections.abc import Iterable
from pathlib import Path

from piat_jax.core.checks import InputError


def roots(data_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders to look in: `data_dir` alone if given, else `$PIAT_DATA_DIR` and ./data.

    >>> [root.as_posix() for root in roots("/somewhere")]
    ['/somewhere']
    """
    if str(data_dir):
        return [Path(data_dir).expanduser()]
    environment = os.environ.get("PIAT_DATA_DIR", "")
    return [Path(folder).expanduser() for folder in (environment, "data") if folder]


def not_found(name: str, tried: Iterable[Path], fix: str) -> InputError:
    """The error to raise when none of the paths `tried` exists.

    >>> not_found("svhn", [Path("a.mat"), Path("b.mat")], "download it").args[0]
    'svhn was not found; tried a.mat, b.mat; download it'
    """
    return InputError(f"{name} was not found; tried {', '.join(str(path) for path in tried)}; {fix}")
