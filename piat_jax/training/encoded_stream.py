"""Training data that stays encoded on disk: workers decode windows of steps while the device computes."""

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
from piat_jax.data.records.loader import Loader, import_grain
from piat_jax.data.types import Split
from piat_jax.training.streaming import WINDOW_BYTES, Stream, Window

WORTH_A_WORD = 0.1
"""The share of an epoch spent waiting for images from which a note is given."""
LEAST_SECONDS = 2.0
"""The least training time from which rates are estimated."""
NAMED = 3
"""The number of files that a note names."""


@jax.tree_util.register_static
class EncodedStream(Stream):
    """A `Stream` of encoded images, whose training crops depend only on key, epoch and example.

    Crops do not depend on workers, batches, processes, or where a run was stopped. Each process decodes its own rows of
    a batch. The host holds about two windows: one being gathered, and the images decoded ahead.

    Args:
      split: `RecordImages` and labels.
      batch_size, extra, extra_per_batch, replays, window_bytes, mesh, epoch_steps: as in `Stream`.
      workers: number of decoding processes; 0 decodes in threads of this process.

    Raises:
      InputError: a batch larger than the data, images that are not `RecordImages`, or no grain.
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
        import_grain(split.images)  # now, as the workers start after the run's folder is written
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
        """As in `Stream`, measuring speed."""
        self._announce(key, epoch)
        self.speed.asks()
        window, end = super().window(key, epoch, step)
        self.speed.has((end - step) * self.own)
        return window, end

    def close(self) -> None:
        """Stop the workers after their current window."""
        for coming in self._windows.values():
            coming.cancel()
        self._windows = {}
        self._use(None)

    def _use(self, loader: Loader | None) -> None:
        """Replace the loader; the old one is closed once the thread has finished with it."""
        old, self._loader, self._announced = self._loader, loader, set()
        if old:
            self._thread.submit(old.close).result()

    def _announce(self, key: Array, epoch: int) -> None:
        """Tell the workers the order of this epoch and the next, so that they do not wait between epochs.

        Every process computes the order, even without rows to decode, because all processes must run the same programs.
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
        """Gather a window that the workers decode, and send it to the device."""
        asked = self._indices(order, number).reshape(-1, self.batch_size)[:, self.rows.start : self.rows.stop]
        steps, here = asked.shape
        # The last window is padded, so that all windows have the same shape; its steps end earlier.
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
        """Fill the first rows of a window's batches `[steps, rows, H, W, C]`; returns their examples `[steps, own]`."""
        steps, here = images.shape[:2]
        count, shape = steps * self.own, images.shape[2:]
        pixels = images.reshape(count, *shape) if self.own == here else np.empty((count, *shape), np.uint8)
        indices = np.empty(count, np.int64)
        if self._loader is None:
            raise InputError("the stream was closed; make a new one")
        self._loader.take(epoch, number * self.length * self.own, pixels, indices)
        if self.own != here:
            images[:, : self.own] = pixels.reshape(steps, self.own, *shape)
        return indices.reshape(steps, self.own).astype(np.int32)

    def _send(self, part: np.ndarray) -> Array:
        """Start sending an array with this process's rows of each batch to the devices."""
        if self.mesh is None:
            return jax.device_put(part)
        sharding = NamedSharding(self.mesh, PartitionSpec(None, AXIS))
        shape = (self.length, self.batch_size, *part.shape[2:])
        return jax.make_array_from_process_local_data(sharding, part, shape)

    def notes(self) -> list[str]:
        """New notes after an epoch: undecodable images, and a host that is too slow."""
        lines = []
        replaced = dict(self._loader.replaced) if self._loader else {}
        if new := sorted(replaced.keys() - self._said):
            self._said |= set(new)
            names = ", ".join(self.encoded.name(index) for index in new[:NAMED])
            lines.append(
                f"{len(new)} training image{'s' * (len(new) > 1)} could not be decoded, replaced by the next one: "
                f"{names}{', ...' if len(new) > NAMED else ''}"
            )
        line = self.speed.note(self.workers, os.cpu_count() or 1)
        if line and not self._slow:
            lines.append(line)
            self._slow = True
        return lines


class Speed:
    """Measures how fast the host decodes and the device trains, from their waiting times."""

    def __init__(self) -> None:
        self.images = self.made = 0
        self.trained = self.waited = self.decoding = 0.0
        self._asked = self._had = 0.0
        self._taken = 0
        self._begun = self._warm = False

    def asks(self) -> None:
        """The device requests a window."""
        self._asked = time.perf_counter()
        if self._had:
            self.trained += self._asked - self._had
            self.images += self._taken

    def has(self, images: int) -> None:
        """The device has its window; a run's first window does not count, because the workers are still starting."""
        now = time.perf_counter()
        if self._begun:
            self.waited += now - self._asked
        self._had, self._taken, self._begun = now, images, True

    def decoded(self, images: int, seconds: float) -> None:
        """The host has decoded a window of `images` images."""
        if self._warm:
            self.made += images
            self.decoding += seconds
        self._warm = True

    def note(self, workers: int, cores: int) -> str:
        """A note if the device waits for the host, else ""; resets all counts."""
        total = self.trained + self.waited
        share = self.waited / total if total else 0.0
        host, device = self.made / max(self.decoding, 1e-9), self.images / max(self.trained, 1e-9)
        known = self.images and self.made
        self.images = self.made = 0
        self.trained = self.waited = self.decoding = self._had = 0.0  # the time after an epoch is not training
        if not known or total < LEAST_SECONDS or share < WORTH_A_WORD or host >= device:
            return ""
        return (
            f"the host is slower than the device: it decodes {host:,.0f} images/s and the device trains on "
            f"{device:,.0f}/s, waiting {100 * share:.0f} % of the time; dataset.workers={workers} of {cores} cores"
        )


def local_rows(batch_size: int, mesh: Mesh | None) -> range:
    """The rows of a batch that are on devices of this process.

    >>> local_rows(8, None)
    range(0, 8)
    """
    if mesh is None:
        return range(batch_size)
    places: Any = NamedSharding(mesh, PartitionSpec(AXIS)).addressable_devices_indices_map((batch_size,))
    bounds = [place[0].indices(batch_size) for place in places.values()]
    return range(min(low for low, _, _ in bounds), max(high for _, high, _ in bounds))
