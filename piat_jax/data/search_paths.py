"""Search paths for data sets, and the list of files that were not found."""

import os
from collections.abc import Sequence
from pathlib import Path

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded


def roots(data_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders to search: only `data_dir` if given, else `$PIAT_DATA_DIR` and ./data.

    >>> [root.as_posix() for root in roots("/somewhere")]
    ['/somewhere']
    """
    if str(data_dir):
        return [expanded(data_dir)]
    environment = os.environ.get("PIAT_DATA_DIR", "")
    return [expanded(folder) for folder in (environment, "data") if folder]


def cache_folder() -> Path:
    """The folder for cached indices of data sets: $PIAT_CACHE_DIR, else ~/.cache/piat_jax.

    As usual, $XDG_CACHE_HOME replaces ~/.cache.
    """
    if own := os.environ.get("PIAT_CACHE_DIR", ""):
        return expanded(own)
    return expanded(os.environ.get("XDG_CACHE_HOME", "") or "~/.cache") / "piat_jax"


class Search:
    """Records every place that was searched without success, for the final error message."""

    def __init__(self) -> None:
        self.tried: list[str] = []

    def files(self, folder: Path, names: Sequence[str]) -> list[Path] | None:
        """The files `names` in `folder` if all exist, else None."""
        if not folder.is_dir():
            self.missing(folder)
            return None
        paths = [folder / name for name in names]
        missing = [path for path in paths if not path.is_file()]
        self.missing(*missing)
        return None if missing else paths

    def file(self, path: Path) -> Path | None:
        """The file if it exists, else None."""
        return paths[0] if (paths := self.files(path.parent, [path.name])) else None

    def missing(self, *paths: Path | str) -> None:
        """Record that these paths do not exist; each path is recorded once."""
        self.tried += [text for path in paths if (text := str(path)) not in self.tried]

    def not_found(self, name: str, fix: str) -> InputError:
        """The error to raise if nothing was found anywhere.

        >>> search = Search()
        >>> search.missing("a.mat", "b.mat")
        >>> search.not_found("svhn", "download it").args[0]
        'svhn was not found; tried a.mat, b.mat; download it'
        """
        return InputError(f"{name} was not found; tried {', '.join(self.tried)}; {fix}")
