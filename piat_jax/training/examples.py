"""Training data on the device: checks and transfer."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from piat_jax.core.checks import InputError
from piat_jax.core.forward import num_classes
from piat_jax.core.sharding import replicate
from piat_jax.core.types import Array, Objective, TrainState
from piat_jax.data.batching import as_counts, take_batch
from piat_jax.data.types import Split, check_split

Pair: TypeAlias = tuple[Array | np.ndarray, Array | np.ndarray]
"""Images and labels."""


class Examples(NamedTuple):
    """Training data as NumPy or JAX arrays; `fit` and `run_epoch` check it and move it to the device if needed."""

    images: Array | np.ndarray  # [N, H, W, C] uint8
    labels: Array | np.ndarray  # [N] whole numbers in [0, K)
    extra: Pair | tuple[Pair, ...] | None = None
    """Additional generated images and labels, or a tuple of such pairs, one per set: data.batching.epoch_order."""

    # Windows and streams have `count` too. It hides tuple.count, which is not needed here.
    @property
    def count(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """N."""
        return self.labels.shape[0]

    @property
    def sources(self) -> tuple[Pair, ...]:
        """The sets of generated examples, one by one."""
        if self.extra is None:
            return ()
        return self.extra if isinstance(self.extra[0], tuple) else (self.extra,)  # type: ignore[return-value]

    @property
    def extra_counts(self) -> tuple[int, ...]:
        """The number of generated examples in each set."""
        return tuple(labels.shape[0] for _, labels in self.sources)

    @property
    def extra_count(self) -> int:
        """The number of generated examples."""
        return sum(self.extra_counts)

    def take(
        self, order: Array, number: Array, batch_size: int, extra_per_batch: int | tuple[int, ...]
    ) -> tuple[Array, Array, Array]:
        """The batch of step `number`: images, labels and indices."""
        own = jnp.asarray(self.images), jnp.asarray(self.labels)
        shares = as_counts(extra_per_batch)
        if self.extra is None or not sum(shares):
            return take_batch(*own, order, number, batch_size)
        indices = jax.lax.dynamic_slice(order, (number * batch_size,), (batch_size,))
        ends = np.cumsum((batch_size - sum(shares), *shares))
        starts = np.cumsum((self.count, *self.extra_counts))
        mine = indices[: ends[0]]
        others = [indices[begin:end] - int(start) for begin, end, start in zip(ends, ends[1:], starts)]
        images, labels = (
            jnp.concatenate(
                [part[mine], *(jnp.asarray(extra)[each] for extra, each in zip(extras, others, strict=True))]
            )
            for part, extras in zip(own, zip(*self.sources))
        )
        return images, labels, indices


def on_device(examples: Examples, objective: Objective, state: TrainState, mesh: Mesh | None) -> Examples:
    """Check the examples and move them to the device, or to all devices of the mesh, with int32 labels.

    Arrays that are already there are not copied.

    Args:
      examples: the training data.
      objective: the method; its model determines the number of classes.
      state: any training state of the method.
      mesh: devices that share each batch; None for one device.

    Raises:
      InputError: images that are not uint8 `[N, H, W, C]`, labels that are not whole numbers `[N]` in [0, K), no
        examples, or extra examples of another shape.
    """
    several = len(examples.sources) > 1
    extra = {f"examples.extra{f'[{n}]' if several else ''}": pair for n, pair in enumerate(examples.sources)}
    given: dict[str, Pair] = {"examples": examples[:2], **extra}
    splits = {name: _as_split(name, *pair) for name, pair in given.items()}
    image_shape = examples.images.shape[1:]
    # For images with other axes, `check_split` raises before it checks labels.
    classes = _count_classes(objective, state, image_shape) if len(image_shape) == 3 else 0
    for name, split in splits.items():
        check_split(name, split, classes)
        if split.images.shape[1:] != image_shape:
            raise InputError(f"{name} images are {split.images.shape[1:]}, the others {image_shape}; give one shape")
    pairs = [
        (images, labels if isinstance(labels, jax.Array) and labels.dtype == jnp.int32 else split.labels)
        for (images, labels), split in zip(given.values(), splits.values())
    ]
    placed = jax.device_put(pairs) if mesh is None else replicate(pairs, mesh)
    own, *sources = placed
    of_one = examples.extra is not None and examples.sources[0] is examples.extra
    return Examples(*own, extra=(sources[0] if of_one else tuple(sources)) if sources else None)


def _as_split(name: str, images: Any, labels: Any) -> Split:
    """The pair with its labels as int32 on the host; labels outside int32 become values that are not classes."""
    for part, value in (("images", images), ("labels", labels)):
        if not isinstance(value, np.ndarray | jax.Array):
            raise InputError(f"{name} {part} are a {type(value).__name__}; give a NumPy or JAX array")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{name} labels have dtype {labels.dtype}; give whole numbers, one class index each")
    wide = np.asarray(labels).astype(np.int64)
    return Split(images, wide.clip(-1, np.iinfo(np.int32).max).astype(np.int32))


def _count_classes(objective: Objective, state: TrainState, image_shape: tuple[int, ...]) -> int:
    one = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return num_classes(objective.model, state.variables, one)
