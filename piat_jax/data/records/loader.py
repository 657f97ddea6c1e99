"""An epoch's training crops in order, decoded in advance by grain's workers."""

import functools
import gc
import os
import shutil
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError, check_count
from piat_jax.data.encoded import first_line
from piat_jax.data.records.images import RecordImages, row

PART_ROWS = 32
"""Maximum number of rows that a worker sends to the process at a time."""
POLL_SECONDS = 0.02
GIVING_BACK_SECONDS = 0.1
ENDLESS = 1 << 50
"""Number of rows in all epochs; grain counts their batches in floating point."""


class Rows:
    """The rows of successive epochs: each row's epoch and example, from the order that was written for its epoch.

    A reader that reaches an epoch before its order is written waits for it.

    Args:
      folder: of the orders, `EPOCH.npy`.
      count: rows per epoch.
      over: a path; the wait ends if this file exists or its folder was removed.
    """

    def __init__(self, folder: str, count: int, over: str):
        self.folder, self.count, self.over = folder, count, over

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> tuple[int, int]:
        epoch, place = divmod(int(number), self.count)
        path = _path(self.folder, epoch)
        while not os.path.exists(path):
            if os.path.exists(self.over) or not os.path.isdir(self.folder):
                raise RuntimeError("the process that takes these images has ended")
            time.sleep(POLL_SECONDS)
        return epoch, int(_order(path)[place])


def _path(folder: str, epoch: int) -> str:
    return f"{folder}/{epoch}.npy"


@functools.lru_cache(4)
def _order(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


class Loader:
    """Training crops of some rows of each batch, in order; the result is independent of the number of workers.

    Args:
      images: of the split.
      words: of the key for the crops' random numbers, 32 bits each.
      batch_rows: rows of each batch that this loader returns, at least 1.
      steps: batches per epoch.
      workers: processes that decode; 0 = threads of this process, one per core.
      ahead: approximate number of rows that are decoded in advance.

    Raises:
      InputError: grain is not installed.
    """

    def __init__(
        self,
        images: RecordImages,
        *,
        words: tuple[int, ...],
        batch_rows: int,
        steps: int,
        workers: int = 0,
        ahead: int = 0,
    ):
        check_count("workers", workers, 0)
        check_count("batch_rows", batch_rows, 1)
        self.images, self.words, self.workers = images, words, workers
        self.epoch_rows = batch_rows * steps
        # Parts divide a batch, so that parts are aligned with batches.
        self.part = max(n for n in range(1, min(PART_ROWS, batch_rows) + 1) if batch_rows % n == 0)
        self.ahead = max(1, ahead // self.part)
        self.replaced: dict[int, int] = {}  # examples that could not be decoded: number of requests for each
        self._grain = import_grain(images)
        self._folder = Path(tempfile.mkdtemp(prefix="piat-orders-"))
        self._over = self._folder / "over"
        self._parts: Iterator[Any] | None = None
        self._next = -1
        self._close = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def announce(self, epoch: int, indices: np.ndarray) -> None:
        """Set the examples of an epoch's rows, `[steps * batch_rows]`, before any is decoded."""
        path = Path(_path(str(self._folder), epoch))
        if not path.exists():
            partial = path.with_suffix(".partial.npy")
            np.save(partial, np.asarray(indices, np.int32))
            partial.replace(path)

    def forget(self, epoch: int) -> None:
        """Drop the orders of epochs before this one."""
        for path in self._folder.glob("*.npy"):
            if path.stem.isdigit() and int(path.stem) < epoch:
                path.unlink()

    def take(self, epoch: int, start: int, images: np.ndarray, indices: np.ndarray) -> None:
        """Fill `images[n, size, size, 3]` and `indices[n]` with the rows of an epoch from `start` on, whole batches.

        Raises:
          InputError: an image cannot be decoded, or a worker failed.
        """
        begin = epoch * self.epoch_rows + start
        if begin != self._next:
            self._begin(begin)
        asked = _order(_path(str(self._folder), epoch))[start : start + len(images)]
        for at in range(0, len(images), self.part):
            part = self._get()
            images[at : at + self.part], indices[at : at + self.part] = part["image"], part["index"]
        self._next = begin + len(images)
        for place in np.flatnonzero(indices != asked):
            index = int(asked[place])
            if indices[place] < 0:
                self._next = -1
                self.images.drawn_or_next(index, self.words, epoch)
                raise InputError(f"{self.images.name(index)} could not be decoded, and then it could; run again")
            self.replaced[index] = self.replaced.get(index, 0) + 1

    def close(self) -> None:
        """End the workers."""
        begun = self._parts is not None
        self._stop()
        self._close()
        if begun and self.workers:
            # Rows decoded in advance are in shared memory. grain frees it in a separate thread after the last reference
            # is gone; a process that ends earlier gets a warning about a leak.
            gc.collect()
            time.sleep(GIVING_BACK_SECONDS)

    def _begin(self, number: int) -> None:
        """Start the workers at a row."""
        self._stop()
        grain = self._grain
        source = grain.MapDataset.source(Rows(str(self._folder), self.epoch_rows, str(self._over)))
        rows = source[number:].map(functools.partial(row, self.images, self.words)).batch(self.part)
        if self.workers:
            dataset = rows.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)).mp_prefetch(
                grain.MultiprocessingOptions(self.workers, max(1, -(-self.ahead // self.workers)))
            )
        else:
            threads = os.cpu_count() or 1
            dataset = rows.to_iter_dataset(grain.ReadOptions(threads, max(threads, self.ahead)))
        self._parts = iter(dataset)

    def _get(self) -> Any:
        try:
            return next(self._parts)  # type: ignore[arg-type]
        except Exception as error:
            self._stop()
            raise InputError(
                f"a worker that decodes images of {self.images.records.where} failed ({first_line(error)}); a script "
                "that trains needs `if __name__ == '__main__':`, and dataset.workers=0 decodes without processes"
            ) from error

    def _stop(self) -> None:
        parts, self._parts, self._next = self._parts, None, -1
        if parts is not None:
            self._over.touch()
            parts.close()  # type: ignore[attr-defined]
            self._over = self._folder / f"over-{uuid.uuid4().hex}"


def import_grain(images: RecordImages) -> Any:
    """The package grain, or an InputError that says how to install it."""
    try:
        import grain
    except ImportError as error:
        raise InputError(f"{images.records.where} is read by grain; pip install 'piat_jax[data]'") from error
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads its own absl flags, which only absl's commands parse
        flags.FLAGS.mark_as_parsed()
    return grain
