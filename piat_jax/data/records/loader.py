"""An epoch's training crops in order, decoded by grain's workers ahead of who takes them."""

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
"""At most so many rows of a batch go from a worker to the process at once."""
POLL_SECONDS = 0.02
GIVING_BACK_SECONDS = 0.1
ENDLESS = 1 << 50
"""Rows of all epochs; grain counts batches of them in floating point."""


class Rows:
    """The rows of epoch after epoch: of each its epoch and its example, from the order that was written for it.

    Whoever comes to an epoch before its order waits for it.

    Args:
      folder: of the orders, `EPOCH.npy`.
      count: rows of an epoch.
      over: a path; a file there, or no folder any more, ends the wait.
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
                raise RuntimeError("nobody takes these images any more")
            time.sleep(POLL_SECONDS)
        return epoch, int(_order(path)[place])


def _path(folder: str, epoch: int) -> str:
    return f"{folder}/{epoch}.npy"


@functools.lru_cache(4)
def _order(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


class Loader:
    """Training crops of some rows of each batch, in order; the same ones however many workers decode them.

    Args:
      images: of the split.
      words: of the key that the crops are drawn by, 32 bits each.
      batch_rows: rows of a batch that are taken here, at least 1.
      steps: batches of an epoch.
      workers: processes that decode; 0 decodes in threads of this one, as many as there are cores.
      ahead: rows that are decoded before they are asked for, about.

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
        # Parts divide a batch, so that they begin where batches do.
        self.part = max(n for n in range(1, min(PART_ROWS, batch_rows) + 1) if batch_rows % n == 0)
        self.ahead = max(1, ahead // self.part)
        self.replaced: dict[int, int] = {}  # examples that could not be decoded: how often each was asked for
        self._grain = _import_grain(images)
        self._folder = Path(tempfile.mkdtemp(prefix="piat-orders-"))
        self._over = self._folder / "over"
        self._parts: Iterator[Any] | None = None
        self._next = -1
        self._close = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def announce(self, epoch: int, indices: np.ndarray) -> None:
        """Say which examples the rows of an epoch are, before any is decoded: `[steps * batch_rows]`."""
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
                raise InputError(f"{self.images.name(index)} could not be decoded once, and then it could; read again")
            self.replaced[index] = self.replaced.get(index, 0) + 1

    def close(self) -> None:
        """End the workers."""
        begun = self._parts is not None
        self._stop()
        self._close()
        if begun and self.workers:
            # What was decoded ahead lies in shared memory, which grain gives back in a thread of its own once nobody
            # holds it. A process that ends before is told of a leak.
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


def _import_grain(images: RecordImages) -> Any:
    try:
        import grain
    except ImportError as error:
        raise InputError(f"{images.records.where} is read by grain; pip install 'piat_jax[data]'") from error
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain asks for flags of its own, which only absl's own commands parse
        flags.FLAGS.mark_as_parsed()
    return grain
