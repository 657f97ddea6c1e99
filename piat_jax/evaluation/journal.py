"""The journal of a robust evaluation on disk: one file per block, so that it can be killed at any time."""

import dataclasses
import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded, unwritable, write_arrays, write_json
from piat_jax.core.multihost import is_first, on_first
from piat_jax.evaluation.robustness import JSON, Robustness, read_images

SETTINGS = "settings.json"
CLEAN, ATTACKED = "clean.npz", "attacked.npz"
BLOCKS = "blocks"


class Record(NamedTuple):
    """The results of one block: R runs of one attack, M of which succeeded."""

    member: np.ndarray  # [] int32, index of the attack
    examples: np.ndarray  # [R] int32
    tasks: np.ndarray  # [R] int32, index of the attack's run at the example
    fell: np.ndarray  # [R] bool, whether the run succeeded
    queries: np.ndarray  # [R] int32
    images: np.ndarray  # [M, H, W, C] float32, of the runs that succeeded
    predictions: np.ndarray  # [M] int32
    distances: np.ndarray  # [M] float32
    seconds: np.ndarray  # [] float64
    valid: np.ndarray = np.array([], bool)  # [R] bool, finite and in ball and box; empty in older folders
    # [R] bool, whether the attack claimed a success in fewer bits that the judge refused: the run must be repeated at
    # full precision. Empty for a block at full precision.
    refused: np.ndarray = np.array([], bool)


class Journal:
    """The folder of one evaluation: `settings.json` and a file for each block, which the result finally replaces.

    If several processes evaluate together, only the first writes: all of them know the results of a block. They read
    the same folder, and an evaluation may resume with any number of processes.

    Raises:
      InputError: the folder holds another evaluation, or files that do not belong to an evaluation.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = expanded(folder)
        self.settings = json.loads(json.dumps(settings))  # in the form in which they are read back
        on_first(self._open)

    def _open(self) -> None:
        folder = repr(str(self.folder))
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"folder={folder} is a file; give a folder")
        found = self.read_settings(self.folder)
        if found is None:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise InputError(f"folder={folder} holds files that are not from an evaluation; give a new folder")
            try:
                (self.folder / BLOCKS).mkdir(parents=True)
            except OSError as error:
                raise unwritable(self.folder, error) from error
            write_json(self.folder / SETTINGS, self.settings)
        elif changed := _differences(found, self.settings):
            raise InputError(
                f"folder={folder} holds another evaluation ({'; '.join(changed)}); remove it, or give another folder"
            )

    @staticmethod
    def read_settings(folder: str | Path) -> dict[str, Any] | None:
        """The settings of the evaluation in a folder; None if there is none."""
        path = expanded(folder) / SETTINGS
        return json.loads(path.read_text()) if path.exists() else None

    def result(self) -> Robustness | None:
        """The result, if the evaluation was finished."""
        return Robustness.load(self.folder) if (self.folder / JSON).exists() else None

    def check_network(self, logits: np.ndarray, weights: str = "", *, file: str = CLEAN) -> None:
        """Store the clean logits `[N, K]` and a digest of the weights; raise InputError if the stored ones differ.

        A function that closes over its weights has no digest, so only the logits are compared. `file` is `CLEAN` for
        the network that judges and `ATTACKED` for a different network that is attacked.
        """
        on_first(lambda: self._check_network(logits, weights, self.folder / file))

    def _check_network(self, logits: np.ndarray, weights: str, path: Path) -> None:
        if not path.exists():
            write_arrays(path, {"logits": logits, "weights": np.array(weights)})
            return
        with np.load(path, allow_pickle=False) as stored:
            before, known = stored["logits"], str(stored["weights"]) if "weights" in stored else ""
        # Other block sizes round differently.
        scale = 1e-3 * np.abs(before[np.isfinite(before)]).max(initial=1e-3)
        other = bool(known and weights) and known != weights
        if other or before.shape != logits.shape or not np.allclose(before, logits, rtol=0, atol=scale, equal_nan=True):
            raise InputError(
                f"folder={str(self.folder)!r} holds the evaluation of another network; "
                "remove it, or give another folder"
            )

    def open_images(self, shape: tuple[int, ...]) -> np.ndarray:
        """A memory map on disk for the images `[N, H, W, C]`, float32, until `finish`.

        Only the first process writes to the folder; others use a temporary file.
        """
        if not is_first():
            with tempfile.TemporaryFile() as file:
                return np.memmap(file, np.float32, "w+", shape=shape)
        path = self.folder / BLOCKS / "images.npy"
        try:
            return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        except OSError as error:
            raise unwritable(path, error) from error

    def records(self) -> Iterator[Record]:
        """The records so far, in order; an unreadable file is removed, and its runs will be repeated."""
        for path in sorted((self.folder / BLOCKS).glob("*.npz")):
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    names = [name for name in Record._fields if name in stored or name not in Record._field_defaults]
                    record = Record(**{name: stored[name] for name in names})
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
                if is_first():
                    path.unlink()
                continue
            yield record

    def append(self, record: Record) -> None:
        """Store the results of a block."""
        if not is_first():
            return
        numbers = [int(path.stem) for path in (self.folder / BLOCKS).glob("*.npz")]
        write_arrays(self.folder / BLOCKS / f"{max(numbers, default=0) + 1:06d}.npz", record._asdict())

    def finish(self, result: Robustness) -> Robustness:
        """Write the result and remove the blocks; returns the result with its images mapped from disk."""
        on_first(lambda: self._finish(result))
        return dataclasses.replace(result, images=read_images(self.folder))

    def _finish(self, result: Robustness) -> None:
        result.save(self.folder)
        shutil.rmtree(self.folder / BLOCKS)


def digest(*arrays: np.ndarray) -> str:
    """A fingerprint of arrays: shapes, dtypes and bytes."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]


def _differences(found: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys((*found, *given))
    return [
        f"{name} {found.get(name)} there, {given.get(name)} here"
        for name in names
        if found.get(name) != given.get(name)
    ]
