"""Training data that does not fit on the device: windows of steps, sent while the device works on the previous one."""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from piat_jax.core.checks import InputError, check_count
from piat_jax.core.rng import named_key
from piat_jax.core.sharding import AXIS, put, replicate
from piat_jax.core.types import Array
from piat_jax.data.batching import as_counts, epoch_order, steps_per_epoch
from piat_jax.data.types import Split

WINDOW_BYTES = 1 << 26
"""Bytes of images per window. Two windows are on the device, and the host fills a third."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["images", "labels", "indices", "first"],
    meta_fields=["count", "extra_counts"],
)
@dataclasses.dataclass(frozen=True)
class Window:
    """The batches of successive steps on the device; `Stream.window` makes them."""

    images: Array  # [W, B, H, W, C] uint8
    labels: Array  # [W, B] int32
    indices: Array  # [W, B] int32, as in `epoch_order`
    first: Array  # int32, the first batch's step
    count: int  # size of the training set
    extra_counts: tuple[int, ...]  # size of each set of generated examples

    @property
    def extra_count(self) -> int:
        """How many generated examples there are."""
        return sum(self.extra_counts)

    def take(
        self, order: Array, number: Array, batch_size: int, extra_per_batch: int | tuple[int, ...]
    ) -> tuple[Array, Array, Array]:
        """The batch of step `number`: images, labels and indices."""
        images, labels, indices = (
            jax.lax.dynamic_index_in_dim(part, number - self.first, keepdims=False)
            for part in (self.images, self.labels, self.indices)
        )
        return images, labels, indices


@jax.tree_util.register_static
class Stream:
    """Training data on the host, in place of `Examples` on the device, with the same batches and results.

    A thread gathers and sends the next window while the device works; at the end of an epoch, the next epoch's first.

    Args:
      split: images (an array, a memory-mapped file, or encoded files) and labels.
      batch_size: B.
      extra: additional generated examples, or several sets of them.
      extra_per_batch: how many examples of each batch are generated, or how many per set.
      replays: how many times in a row each batch is used (Free-AT).
      window_bytes: bytes of images per window; a window has at least one batch.
      mesh: devices that share each batch.
      epoch_steps: number of steps per epoch; 0 = the full batches of the training set.

    Raises:
      InputError: a batch larger than the data.
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
    ):
        check_count("window_bytes", window_bytes, 1)
        self.labels = split.labels
        self.count = len(split.labels)
        self.steps, self.epoch_steps = steps_per_epoch(self.count, batch_size, epoch_steps), epoch_steps
        self.batch_size, self.extra_per_batch, self.mesh, self.replays = batch_size, extra_per_batch, mesh, replays
        sources = [extra] if isinstance(extra, Split) else list(extra or ())
        self.extra_counts = tuple(len(source.labels) for source in sources)
        self._splits = [split, *sources]
        image_bytes = int(np.prod(split.images.shape[1:]))
        self.length = max(1, min(self.steps, window_bytes // (batch_size * image_bytes)))
        self._thread = ThreadPoolExecutor(1, "stream")
        # By (key, epoch, window): windows on the device or in transfer, and the orders of their epochs.
        self._windows: dict[Any, Future[Window]] = {}
        self._orders: dict[Any, Array] = {}

    @property
    def extra_count(self) -> int:
        """How many generated examples there are."""
        return sum(self.extra_counts)

    def check(self, batch_size: int, extra_per_batch: int | tuple[int, ...], epoch_steps: int) -> None:
        """Raise InputError unless the stream's batches match the recipe's."""
        for name, wanted in (
            ("batch_size", batch_size),
            ("extra_per_batch", extra_per_batch),
            ("epoch_steps", epoch_steps),
        ):
            own = getattr(self, name)
            if as_counts(own) != as_counts(wanted):
                raise InputError(f"{name}={wanted} in the recipe differs from {own} in the stream; give both the same")

    def window(self, key: Array, epoch: int, step: int) -> tuple[Window, int]:
        """The window with a given step, and the first step after it; starts sending the following window."""
        key_data = tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())
        number = step // self.length
        last = number == (self.steps - 1) // self.length
        following = (epoch + 1, 0) if last else (epoch, number + 1)
        wanted = [(key_data, epoch, number), (key_data, *following)]
        # Dispatched here, not in the thread, so that the device runs it before the caller's next steps.
        self._orders = {
            name[:2]: self._orders[name[:2]] if name[:2] in self._orders else self._order(key, name[1])
            for name in wanted
        }
        self._windows = {
            name: self._windows.get(name) or self._thread.submit(self._make, self._orders[name[:2]], name[2], name[1])
            for name in wanted
        }
        return self._windows[wanted[0]].result(), min((number + 1) * self.length, self.steps)

    def _order(self, key: Array, epoch: int) -> Array:
        """The order of an epoch's examples, on the device."""
        shares = self.extra_per_batch
        counts = (self.count, self.batch_size, self.extra_counts, shares, self.replays, self.epoch_steps)
        return _order(key, epoch, *counts)

    def _make(self, order: Array, number: int, epoch: int) -> Window:
        """Gather a window and send it to the device."""
        indices = self._indices(order, number)
        rows = len(indices)
        images = np.zeros((self.length * self.batch_size, *self._splits[0].images.shape[1:]), np.uint8)
        labels = np.zeros(len(images), np.int32)
        start = 0
        for split in self._splits:
            here = np.flatnonzero((indices >= start) & (indices < start + len(split.labels)))
            images[here] = split.images[indices[here] - start]
            labels[here] = split.labels[indices[here] - start]
            start += len(split.labels)
        # The last window is padded, so that all windows have the same shape; its steps end earlier.
        indices = np.pad(indices, (0, len(images) - rows))
        parts = [part.reshape(self.length, self.batch_size, *part.shape[1:]) for part in (images, labels, indices)]
        if self.mesh is None:
            parts = jax.device_put(parts)
        else:
            parts = put(parts, NamedSharding(self.mesh, PartitionSpec(None, AXIS)))
        return self._sent(parts, number)

    def _indices(self, order: Any, number: int) -> np.ndarray:
        """The examples of a window, batch after batch; the last window may have fewer."""
        begin = number * self.length * self.batch_size
        end = min(begin + self.length * self.batch_size, self.steps * self.batch_size)
        return np.asarray(order)[begin:end]

    def _sent(self, parts: Any, number: int) -> Window:
        """The window of images, labels and indices, once they have arrived on the device."""
        at: Any = np.int32(number * self.length)
        first = jax.device_put(at) if self.mesh is None else replicate(at, self.mesh)
        images, labels, indices = jax.block_until_ready(parts)
        return Window(images, labels, indices, first, self.count, self.extra_counts)

    def notes(self) -> list[str]:
        """Notes after an epoch; none here."""
        return []

    def close(self) -> None:
        """Stop workers; there are none here."""


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6, 7))
def _order(
    key: Array,
    epoch: int,
    count: int,
    batch_size: int,
    extra_counts: tuple[int, ...],
    extra_per_batch: int | tuple[int, ...],
    replays: int,
    epoch_steps: int,
) -> Array:
    shuffled = jax.random.fold_in(named_key(key, "shuffle"), epoch)
    return epoch_order(shuffled, count, batch_size, extra_counts, extra_per_batch, replays, epoch_steps)


def check_extra(images: Any, extra: Split, batch_size: int, extra_per_batch: int) -> None:
    """Raise InputError unless the extra examples fit the images' shape and the batch size.

    >>> check_extra(np.zeros((1, 8, 8, 1)), Split(np.zeros((1, 8, 8, 3)), np.zeros(1)), 8, 4)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: extra images are (8, 8, 3), the training images (8, 8, 1); give one shape
    """
    if extra.images.shape[1:] != images.shape[1:]:
        raise InputError(
            f"extra images are {extra.images.shape[1:]}, the training images {images.shape[1:]}; give one shape"
        )
    if not 0 < extra_per_batch < batch_size:
        raise InputError(
            f"{extra_per_batch} of batch_size={batch_size} would be extra examples; "
            "give an extra_fraction that leaves at least one of each kind"
        )
