"""The ids that trackers gave to a run, stored in its folder so that a resumed run continues under them."""

import json
from pathlib import Path

from piat_jax.core.files import write_json

FILE = "trackers.json"


def read_id(folder: Path, name: str) -> str:
    """The id that the tracker `name` gave to the run; "" if there is none, or the file cannot be read.

    >>> read_id(Path("nowhere"), "wandb")
    ''
    """
    return str(_read(folder).get(name, ""))


def keep_id(folder: Path, name: str, value: str) -> None:
    """Store the id that the tracker `name` gave to the run."""
    write_json(folder / FILE, {**_read(folder), name: value})


def _read(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
