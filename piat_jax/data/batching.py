"""Batches of a data set that lives on the device: a permutation per epoch, a slice and a gather per step.

The last partial batch of an epoch is dropped: a compiled step wants one shape, and padding would change BatchNorm's
statistics. Each epoch has a fresh permutation, so other examples are dropped each time.
"""

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_count
from piat_jax.core.rng import named_key
from piat_jax.core.types import Array


def check_batch_size(batch_size: int, num_examples: int) -> None:
    """Raise InputError unless `batch_size` is in [1, num_examples].

    >>> check_batch_size(128, 100)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: batch_size=128 is more than the 100 examples; give at most 100
    """
    check_count("batch_size", batch_size, 1)
    if batch_size > num_examples:
        raise InputError(
            f"batch_size={batch_size} is more than the {num_examples} examples; give at most {num_examples}"
        )


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """The number of whole batches in an epoch.

    Raises:
      InputError: `batch_size` is not in [1, num_examples].

    >>> steps_per_epoch(50_000, 128)
    390
    """
    check_batch_size(batch_size, num_examples)
    return num_examples // batch_size


def epoch_permutation(key: Array, num_examples: int) -> Array:
    """The order of the examples in one epoch, `[num_examples]` int32; derive `key` from the epoch's number."""
    return jax.random.permutation(key, num_examples).astype(jnp.int32)


def epoch_order(
    key: Array, num_examples: int, batch_size: int, num_extra: int = 0, extra_per_batch: int = 0, replays: int = 1
) -> Array:
    """The examples of all steps of one epoch, one batch after the other.

    Args:
      key: derive it from the epoch's number.
      num_examples: N, of the training set.
      batch_size: B.
      num_extra: M, of a set of generated examples beside it.
      extra_per_batch: E, how many of each batch are of these: its last ones.
      replays: how often in a row each batch is taken; an epoch stays as many steps long and sees fewer batches.

    Returns:
      Indices, int32. Without extra examples the epoch's permutation. With them `[(N // B) B]`: each batch has B - E of
      the N and E of the M, which count from N on. An epoch stays as long as it is without them, so it sees
      `(N // B) (B - E)` of its own; neither repeats before all were seen, and the M begin anew where they end.

    >>> order = epoch_order(jax.random.key(0), 8, 4, 100, 3).reshape(2, 4)
    >>> (order < 8).sum(axis=1).tolist(), bool((order[:, 1:] >= 8).all())
    ([1, 1], True)
    """
    if replays > 1:
        order = epoch_order(key, num_examples, batch_size, num_extra, extra_per_batch)
        steps = steps_per_epoch(num_examples, batch_size)
        return order[: steps * batch_size].reshape(steps, -1)[jnp.arange(steps) // replays].reshape(-1)
    own = epoch_permutation(key, num_examples)
    if not extra_per_batch:
        return own
    steps = steps_per_epoch(num_examples, batch_size)
    extra = epoch_permutation(named_key(key, "extra"), num_extra)[jnp.arange(steps * extra_per_batch) % num_extra]
    own = own[: steps * (batch_size - extra_per_batch)].reshape(steps, -1)
    return jnp.concatenate([own, num_examples + extra.reshape(steps, -1)], axis=1).reshape(-1)


def take_batch(
    images: Array, labels: Array, order: Array, step: Array | int, batch_size: int
) -> tuple[Array, Array, Array]:
    """The batch of one step.

    Args:
      images: all images `[N, H, W, C]`, uint8, on the device.
      labels: all labels `[N]`.
      order: `epoch_permutation` of this epoch, `[N]`, or of a part of the examples.
      step: the step within the epoch, in [0, steps_per_epoch), may be traced; a traced step beyond that repeats the
        last examples of the order.
      batch_size: B, static.

    Returns:
      `(images[B, H, W, C], labels[B], indices[B])`, where `indices` are the examples' places in the data set.

    Raises:
      InputError: the batch is larger than the data, or a concrete step is beyond the epoch.

    >>> images, labels = jnp.zeros((5, 1, 1, 1), jnp.uint8), jnp.array([7, 5, 3, 2, 0])
    >>> [part.tolist() for part in take_batch(images, labels, jnp.array([4, 2, 0, 1, 3]), 1, 2)[1:]]
    [[7, 5], [0, 1]]
    """
    steps = steps_per_epoch(order.shape[0], batch_size)
    if isinstance(step, int) and not 0 <= step < steps:
        raise InputError(f"step={step} must be in [0, {steps}), the whole batches of an epoch")
    indices = jax.lax.dynamic_slice(order, (step * batch_size,), (batch_size,))
    return images[indices], labels[indices], indices
