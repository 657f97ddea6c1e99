"""Training data that stays encoded on the disk: windows of steps, decoded by workers while the device works."""

import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from piat_jax.core.checks import InputError
from piat_jax.core.rng import named_key
from piat_jax.core.sharding import AXIS
from piat_jax.core.types import Array
from piat_jax.data.batching import as_counts
from piat_jax.data.records.images import RecordImages
from piat_jax.data.records.loader import Loader
from piat_jax.data.types import Split
from piat_jax.training.streaming import WINDOW_BYTES, Stream, Window

WORTH_A_WORD = 0.1
"""Of an epoch's time that the device waits for images."""
LEAST_SECONDS = 2.0
"""Of training that say something about rates."""
NAMED = 3
"""Files that a note names."""


@jax.tree_util.register_static
class EncodedStream(Stream):
    """A `Stream` of encoded images: each batch's training crops, drawn by key, epoch and example and by nothing else.

    So they do not depend on workers, on batches, on processes, or on where a run was stopped. Each process decodes its
    own rows of a batch. About two windows are on the host: one that is gathered, and what is decoded ahead of it.

    Args:
      split: `RecordImages` and labels.
      batch_size, extra, extra_per_batch, replays, window_bytes, mesh, epoch_steps: as of `Stream`.
      workers: processes that decode; 0 decodes in threads of this one.

    Raises:
      InputError: a batch larger than the data, or images that are no `RecordImages`.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        extra: Split | Sequence[Split] | None = None,
        extra_per_batch: int | tuple[int, ...] = 0,
        replays: int = 1,
        window_bytes: int = WINDOW_BYTES,
        mesh: Mesh | None = None,
        epoch_steps: int = 0,
        workers: int = 0,
    ):
        super().__init__(
            split,
            batch_size=batch_size,
            extra=extra,
            extra_per_batch=extra_per_batch,
            replays=replays,
            window_bytes=window_bytes,
            mesh=mesh,
            epoch_steps=epoch_steps,
        )
        if not isinstance(split.images, RecordImages):
            raise InputError(f"images are {type(split.images).__name__}; give RecordImages, or a Stream for arrays")
        self.encoded, self.workers = split.images, workers
        self.rows = local_rows(batch_size, mesh)
        generated = sum(as_counts(extra_per_batch)) if self.extra_counts else 0
        self.own = max(0, min(self.rows.stop, batch_size - generated) - self.rows.start)
        self._loader: Loader | None = None
        self._announced: set[int] = set()
        self._said: set[int] = set()
        self._slow = False
        self.speed = Speed()

    def window(self, key: Array, epoch: int, step: int) -> tuple[Window, int]:
        """As of `Stream`."""
        self._announce(key, epoch)
        self.speed.asks()
        window, end = super().window(key, epoch, step)
        self.speed.has((end - step) * self.own)
        return window, end

    def close(self) -> None:
        """End the workers, after the window that they are at."""
        for coming in self._windows.values():
            coming.cancel()
        self._windows = {}
        self._use(None)

    def _use(self, loader: Loader | None) -> None:
        """Put a loader in the place of the one there is, which ends when the thread is through with it."""
        old, self._loader, self._announced = self._loader, loader, set()
        if old:
            self._thread.submit(old.close).result()

    def _announce(self, key: Array, epoch: int) -> None:
        """Tell the workers the order of an epoch and of the next one, so that they need not wait between them.

        Processes compute it even where they decode nothing, as all run the same programs.
        """
        words = tuple(np.asarray(jax.random.key_data(named_key(key, "crop"))).ravel().tolist())
        if self.own and (self._loader is None or self._loader.words != words):
            ahead = self.length * self.own
            sizes = {"batch_rows": self.own, "steps": self.steps, "workers": self.workers, "ahead": ahead}
            self._use(Loader(self.encoded, words=words, **sizes))
        for number in sorted({epoch, epoch + 1} - self._announced):
            batches = np.asarray(self._order(key, number))[: self.steps * self.batch_size].reshape(self.steps, -1)
            if self._loader:
                self._loader.announce(number, batches[:, self.rows.start : self.rows.start + self.own].reshape(-1))
            self._announced.add(number)
        self._announced = {number for number in self._announced if number >= epoch}
        if self._loader:
            self._loader.forget(epoch)

    def _make(self, order: Array, number: int, epoch: int) -> Window:
        """Gather a window, decoded by the workers, and send it."""
        asked = self._indices(order, number).reshape(-1, self.batch_size)[:, self.rows.start : self.rows.stop]
        steps, here = asked.shape
        # The last window is filled up, so that all have one shape; its steps end before.
        images = np.zeros((self.length, here, *self.encoded.shape[1:]), np.uint8)
        labels, indices = (np.zeros((self.length, here), np.int32) for _ in range(2))
        indices[:steps] = asked
        if self.own:
            began = time.perf_counter()
            found = self._decode(epoch, number, images[:steps])
            self.speed.decoded(steps * self.own, time.perf_counter() - began)
            indices[:steps, : self.own] = found
            labels[:steps, : self.own] = self.labels[found]
        start = self.count
        for split in self._splits[1:]:
            of_it = (indices[:steps] >= start) & (indices[:steps] < start + len(split.labels))
            images[:steps][of_it] = split.images[indices[:steps][of_it] - start]
            labels[:steps][of_it] = split.labels[indices[:steps][of_it] - start]
            start += len(split.labels)
        return self._sent([self._send(part) for part in (images, labels, indices)], number)

    def _decode(self, epoch: int, number: int, images: np.ndarray) -> np.ndarray:
        """Fill the first rows of each batch `[steps, rows, H, W, C]` of a window; the examples `[steps, own]` there."""
        steps, here = images.shape[:2]
        count, shape = steps * self.own, images.shape[2:]
        pixels = images.reshape(count, *shape) if self.own == here else np.empty((count, *shape), np.uint8)
        indices = np.empty(count, np.int64)
        if self._loader is None:
            raise InputError("the stream was closed; make another one")
        self._loader.take(epoch, number * self.length * self.own, pixels, indices)
        if self.own != here:
            images[:, : self.own] = pixels.reshape(steps, self.own, *shape)
        return indices.reshape(steps, self.own).astype(np.int32)

    def _send(self, part: np.ndarray) -> Array:
        """An array with this process's rows of each batch, on its way to the devices."""
        if self.mesh is None:
            return jax.device_put(part)
        sharding = NamedSharding(self.mesh, PartitionSpec(None, AXIS))
        shape = (self.length, self.batch_size, *part.shape[2:])
        return jax.make_array_from_process_local_data(sharding, part, shape)

    def notes(self) -> list[str]:
        """What is to be said after an epoch and was not: bad images, and a host that is too slow."""
        lines = []
        replaced = dict(self._loader.replaced) if self._loader else {}
        if new := sorted(replaced.keys() - self._said):
            self._said |= set(new)
            names = ", ".join(self.encoded.name(index) for index in new[:NAMED])
            lines.append(
                f"{len(new)} training image{'s' * (len(new) > 1)} could not be decoded, and the next one stood in: "
                f"{names}{', ...' if len(new) > NAMED else ''}"
            )
        line = self.speed.note(self.workers, os.cpu_count() or 1)
        if line and not self._slow:
            lines.append(line)
            self._slow = True
        return lines


class Speed:
    """How fast the host decodes and the device trains, from when each waits for the other."""

    def __init__(self) -> None:
        self.images = self.made = 0
        self.trained = self.waited = self.decoding = 0.0
        self._asked = self._had = 0.0
        self._taken = 0
        self._begun = self._warm = False

    def asks(self) -> None:
        """The device wants a window."""
        self._asked = time.perf_counter()
        if self._had:
            self.trained += self._asked - self._had
            self.images += self._taken

    def has(self, images: int) -> None:
        """The device has it; the first ones of a run wait for workers to start, and do not count."""
        now = time.perf_counter()
        if self._begun:
            self.waited += now - self._asked
        self._had, self._taken, self._begun = now, images, True

    def decoded(self, images: int, seconds: float) -> None:
        """The host has made a window of so many images."""
        if self._warm:
            self.made += images
            self.decoding += seconds
        self._warm = True

    def note(self, workers: int, cores: int) -> str:
        """A line where the device waits for the host; "" where it does not. What was counted begins anew."""
        total = self.trained + self.waited
        share = self.waited / total if total else 0.0
        host, device = self.made / max(self.decoding, 1e-9), self.images / max(self.trained, 1e-9)
        known = self.images and self.made
        self.images = self.made = 0
        self.trained = self.waited = self.decoding = self._had = 0.0  # what follows an epoch is no training
        if not known or total < LEAST_SECONDS or share < WORTH_A_WORD or host >= device:
            return ""
        return (
            f"the host is slower than the device: it decodes {host:,.0f} images/s and the device trains on "
            f"{device:,.0f}/s, waiting {100 * share:.0f} % of the time; dataset.workers={workers} of {cores} cores"
        )


def local_rows(batch_size: int, mesh: Mesh | None) -> range:
    """Which rows of a batch are on devices of this process.

    >>> local_rows(8, None)
    range(0, 8)
    """
    if mesh is None:
        return range(batch_size)
    places: Any = NamedSharding(mesh, PartitionSpec(AXIS)).addressable_devices_indices_map((batch_size,))
    bounds = [place[0].indices(batch_size) for place in places.values()]
    return range(min(low for low, _, _ in bounds), max(high for _, high, _ in bounds))
