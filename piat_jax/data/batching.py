"""Batches of a data set: one permutation per epoch, and on the device one slice and one gather per step.

The last partial batch of an epoch is dropped: a compiled step needs one shape, and padding would change BatchNorm's
statistics. Each epoch has a new permutation, so different examples are dropped.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_count
from piat_jax.core.rng import named_key
from piat_jax.core.types import Array
from piat_jax.data.shuffling import shuffled

LARGE = 1 << 22
"""For more generated examples than this, `shuffling.shuffled` computes the required indices without a permutation."""


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


def steps_per_epoch(num_examples: int, batch_size: int, epoch_steps: int = 0) -> int:
    """The number of batches in an epoch: `epoch_steps`, or the number of whole batches in the data.

    Args:
      num_examples: N.
      batch_size: B.
      epoch_steps: 0 = N // B.

    Raises:
      InputError: `batch_size` is not in [1, num_examples], or `epoch_steps` is negative.

    >>> steps_per_epoch(50_000, 128), steps_per_epoch(50_000, 128, epoch_steps=1000)
    (390, 1000)
    """
    check_batch_size(batch_size, num_examples)
    check_count("epoch_steps", epoch_steps, 0)
    return epoch_steps or num_examples // batch_size


def epoch_permutation(key: Array, num_examples: int) -> Array:
    """A random order of the examples for one epoch, `[num_examples]` int32; derive `key` from the epoch's number."""
    return jax.random.permutation(key, num_examples).astype(jnp.int32)


def epoch_order(
    key: Array,
    num_examples: int,
    batch_size: int,
    num_extra: int | Sequence[int] = 0,
    extra_per_batch: int | Sequence[int] = 0,
    replays: int = 1,
    epoch_steps: int = 0,
) -> Array:
    """The examples of all steps of one epoch, batch by batch.

    Args:
      key: derive it from the epoch's number.
      num_examples: N, size of the training set.
      batch_size: B.
      num_extra: M, size of a set of generated examples, or sizes of several sets.
      extra_per_batch: E, number of generated examples in each batch, or numbers for each set; they are the batch's last
        ones, set by set.
      replays: number of consecutive steps on each batch; the number of steps stays, so an epoch sees fewer batches.
      epoch_steps: S, number of steps in the epoch; 0 = N // B.

    Returns:
      Indices, int32. Without extra examples and S, the epoch's permutation. Else `[S B]`: each batch has B - E of the N
      training examples and E of the M generated ones, whose indices begin at N (at N + M for a second set). Without S
      an epoch has as many steps as without extra examples, so it sees `(N // B) (B - E)` training examples. In an
      epoch, no example of a set repeats before all of the set were seen. Then the N follow in a new permutation, and
      the M in the same order again.

    >>> order = epoch_order(jax.random.key(0), 8, 4, 100, 3).reshape(2, 4)
    >>> (order < 8).sum(axis=1).tolist(), bool((order[:, 1:] >= 8).all())
    ([1, 1], True)
    """
    if replays > 1:
        order = epoch_order(key, num_examples, batch_size, num_extra, extra_per_batch, epoch_steps=epoch_steps)
        steps = steps_per_epoch(num_examples, batch_size, epoch_steps)
        return order[: steps * batch_size].reshape(steps, -1)[jnp.arange(steps) // replays].reshape(-1)
    sizes, shares = as_counts(num_extra), as_counts(extra_per_batch)
    if not sum(shares) and not epoch_steps:
        return epoch_permutation(key, num_examples)
    steps = steps_per_epoch(num_examples, batch_size, epoch_steps)
    if len(sizes) != len(shares) and sum(shares):
        raise InputError(f"extra_per_batch={shares} for {len(sizes)} sets of generated examples; give one for each")
    own = steps * (batch_size - sum(shares))
    order = _passes(key, num_examples, own)
    if not sum(shares):
        return order[:own]
    key = named_key(key, "extra")
    drawn = [
        _of_extra(jax.random.fold_in(key, number) if number else key, size, steps * share)
        for number, (size, share) in enumerate(zip(sizes, shares))
    ]
    starts = accumulate(sizes, initial=num_examples)
    columns = [order[:own].reshape(steps, -1), *(start + each.reshape(steps, -1) for start, each in zip(starts, drawn))]
    return jnp.concatenate(columns, axis=1).reshape(-1)


def _passes(key: Array, size: int, count: int) -> Array:
    """At least `count` indices of a set: successive permutations of it."""
    first = epoch_permutation(key, size)
    if count <= size:
        return first
    again = named_key(key, "again")
    # Not under vmap, where some generators draw other numbers.
    numbers = jnp.arange(1, -(-count // size))
    rest = jax.lax.map(lambda number: epoch_permutation(jax.random.fold_in(again, number), size), numbers)
    return jnp.concatenate([first, rest.reshape(-1)])


def _of_extra(key: Array, size: int, count: int) -> Array:
    """`count` indices of a generated set, which starts again at its end."""
    if size <= LARGE:
        return epoch_permutation(key, size)[jnp.arange(count) % size]
    return shuffled(key, jnp.arange(count) % size, size)


def as_counts(counts: int | Sequence[int]) -> tuple[int, ...]:
    """One count or several as a tuple.

    >>> as_counts(3), as_counts([1, 2])
    ((3,), (1, 2))
    """
    return (counts,) if isinstance(counts, int) else tuple(counts)


def share_out(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Split `total` into whole numbers in proportion to weights, by largest remainder; ties favour the first.

    >>> share_out(10, (2.0, 1.0)), share_out(7, (1, 1, 1))
    ((7, 3), (3, 2, 2))
    """
    exact = [Fraction(weight) * total / sum(map(Fraction, weights)) for weight in weights]
    shares = [int(each) for each in exact]
    largest = sorted(range(len(exact)), key=lambda place: shares[place] - exact[place])
    for place in largest[: total - sum(shares)]:
        shares[place] += 1
    return tuple(shares)


def take_batch(
    images: Array, labels: Array, order: Array, step: Array | int, batch_size: int
) -> tuple[Array, Array, Array]:
    """Take the batch of one step.

    Args:
      images: all images `[N, H, W, C]`, uint8, on the device.
      labels: all labels `[N]`.
      order: `epoch_permutation` of this epoch, `[N]`, or of a part of the examples.
      step: the step within the epoch, in [0, steps_per_epoch), may be traced; a traced step beyond this range repeats
        the last examples of the order.
      batch_size: B, static.

    Returns:
      `(images[B, H, W, C], labels[B], indices[B])`, where `indices` are the examples' indices in the data set.

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
