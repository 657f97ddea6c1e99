"""A shuffled order that is computed entry by entry and never stored, for sets of many millions of examples."""

import math

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError
from piat_jax.core.types import Array

ROUNDS = 8
MOST = 1 << 31
"""Maximum number of examples with int32 indices."""


def shuffled(key: Array, positions: Array, count: int) -> Array:
    """Compute the entries of a shuffled `range(count)` at some positions only.

    This is a Feistel network: with `a b >= count` and `x = (l, r)` in `[0, a) x [0, b)`, each round adds a hash of one
    half, keyed by the round, to the other half, and the halves swap roles. This is a bijection for any hash. Results
    outside the range pass through the network again until they are inside, which preserves the bijection.

    Args:
      key: decides the order.
      positions: any shape, whole numbers in [0, count).
      count: number of examples, in [1, 2^31].

    Returns:
      Indices in [0, count), int32, in the positions' shape; different positions have different indices.

    Raises:
      InputError: `count` is out of range.

    Source: Luby & Rackoff (1988), SIAM Journal on Computing 17, for the network; Black & Rogaway (2002), CT-RSA, for
    halves of any size and the return into the range ("cycle walking").

    >>> order = shuffled(jax.random.key(0), jnp.arange(7), 7)
    >>> sorted(order.tolist()), order.dtype
    ([0, 1, 2, 3, 4, 5, 6], dtype('int32'))
    """
    if not 1 <= count <= MOST:
        raise InputError(f"count={count} must be in [1, {MOST}]")
    a = math.isqrt(count - 1) + 1
    b = -(-count // a)
    keys = jax.random.bits(key, (ROUNDS, 2), jnp.uint32)

    def network(x: Array) -> Array:
        left, right = x // jnp.uint32(b), x % jnp.uint32(b)
        for number in range(0, ROUNDS, 2):
            left = (left + _hash(right, keys[number])) % jnp.uint32(a)
            right = (right + _hash(left, keys[number + 1])) % jnp.uint32(b)
        return left * jnp.uint32(b) + right

    def outside(x: Array) -> Array:
        return x >= jnp.uint32(count)

    found = network(positions.astype(jnp.uint32))
    found = jax.lax.while_loop(lambda x: jnp.any(outside(x)), lambda x: jnp.where(outside(x), network(x), x), found)
    return found.astype(jnp.int32)


def _hash(x: Array, key: Array) -> Array:
    """Hash each entry of `x` to a whole number in [0, 2^31), keyed by two words: murmur3's finaliser, twice."""
    for word in key:
        x = x ^ word
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        x = x ^ (x >> 16)
    return x >> 1  # no overflow when a half is added
