"""Where data sets are looked for, and the list of what was not there."""

import os
from collections.abc import Sequence
from pathlib import Path

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded


def roots(data_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders to look in: `data_dir` alone if given, else `$PIAT_DATA_DIR` and ./data.

    >>> [root.as_posix() for root in roots("/somewhere")]
    ['/somewhere']
    """
    if str(data_dir):
        return [expanded(data_dir)]
    environment = os.environ.get("PIAT_DATA_DIR", "")
    return [expanded(folder) for folder in (environment, "data") if folder]


def cache_folder() -> Path:
    """Where what takes long to find out about data sets is kept: $PIAT_CACHE_DIR, else ~/.cache/piat_jax.

    As elsewhere, $XDG_CACHE_HOME stands in the place of ~/.cache.
    """
    if own := os.environ.get("PIAT_CACHE_DIR", ""):
        return expanded(own)
    return expanded(os.environ.get("XDG_CACHE_HOME", "") or "~/.cache") / "piat_jax"


class Search:
    """Remembers every place that was looked at in vain, for the error when nothing is found."""

    def __init__(self) -> None:
        self.tried: list[str] = []

    def files(self, folder: Path, names: Sequence[str]) -> list[Path] | None:
        """The files `names` in `folder` if all are there, else None."""
        if not folder.is_dir():
            self.missing(folder)
            return None
        paths = [folder / name for name in names]
        missing = [path for path in paths if not path.is_file()]
        self.missing(*missing)
        return None if missing else paths

    def file(self, path: Path) -> Path | None:
        """The file if it is there, else None."""
        return paths[0] if (paths := self.files(path.parent, [path.name])) else None

    def missing(self, *paths: Path | str) -> None:
        """Note that nothing is at these paths; one that was noted before is not repeated."""
        self.tried += [text for path in paths if (text := str(path)) not in self.tried]

    def not_found(self, name: str, fix: str) -> InputError:
        """The error to raise when nothing was found anywhere.

        >>> search = Search()
        >>> search.missing("a.mat", "b.mat")
        >>> search.not_found("svhn", "download it").args[0]
        'svhn was not found; tried a.mat, b.mat; download it'
        """
        return InputError(f"{name} was not found; tried {', '.join(self.tried)}; {fix}")
