"""Stochastic depth (Huang et al., 2016): in training, a network drops branches of its blocks, per image."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError
from piat_jax.core.types import Array

IMAGE_KEYS = "image_keys"
"""A collection that `LinenModel.apply` adds to the variables in training: `{"keys": key[B]}`, one key per image."""


def check_drop_path(rate: float) -> None:
    """Raise InputError unless the rate is at least 0 and below 1.

    >>> check_drop_path(1.0)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: drop_path=1.0 must be in [0, 1): a share of the images, such as 0.1
    """
    if not 0 <= rate < 1:
        raise InputError(f"drop_path={rate} must be in [0, 1): a share of the images, such as 0.1")


def rising_rates(last: float, blocks: int) -> tuple[float, ...]:
    """The rate of each block, `last i / (blocks - 1)` for block i: 0 in the first block, `last` in the last.

    >>> rising_rates(0.5, 3), rising_rates(0.5, 1)
    ((0.0, 0.25, 0.5), (0.0,))
    """
    return tuple(last * (index / max(blocks - 1, 1)) for index in range(blocks))


def branch_factors(module: nn.Module, rates: Sequence[float], branches: int) -> tuple[Array | None, ...]:
    """The factors of each block's branches: 0 with probability p, else `1 / (1 - p)`.

    An image's factors are drawn from its own key, so they do not depend on the batch.

    Args:
      module: the network's module; its variables contain the keys in training.
      rates: p of each block.
      branches: number of branches per block.

    Returns:
      `[B, branches]` in float32 for each block, for `kept`; None if nothing is dropped: for a rate of 0, or without
      keys, as in evaluation mode.

    Raises:
      InputError: a rate outside [0, 1).

    Source: Huang et al. (2016), arXiv:1603.09382, with the factor of timm's code.
    """
    for rate in rates:
        check_drop_path(rate)
    if not module.has_variable(IMAGE_KEYS, "keys"):
        return (None,) * len(rates)
    keys = module.get_variable(IMAGE_KEYS, "keys")
    numbers = jax.vmap(lambda key: jax.random.uniform(key, (len(rates) * branches,), jnp.float32))(keys)
    numbers = numbers.reshape(-1, len(rates), branches)
    return tuple(
        jnp.where(numbers[:, index] < rate, 0.0, 1 / (1 - rate)) if rate else None for index, rate in enumerate(rates)
    )


def kept(branch: Array, factors: Array | None, number: int = 0) -> Array:
    """A branch `[B, ...]` times each image's factor; unchanged without factors.

    >>> kept(jnp.array([[1.0], [1.0]]), jnp.array([[0.0], [2.0]])).tolist()
    [[0.0], [2.0]]
    """
    if factors is None:
        return branch
    return branch * factors[:, number].astype(branch.dtype).reshape(-1, *(1,) * (branch.ndim - 1))
