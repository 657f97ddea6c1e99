"""Random keys derived by name, step and example: nothing is stored, and results do not depend on batching."""

import zlib

import jax

from piat_jax.core.types import Array


def named_key(key: Array, name: str) -> Array:
    """The stream called `name` under `key`; other names give independent streams.

    >>> import jax
    >>> key = jax.random.key(0)
    >>> bool(named_key(key, "attack") == named_key(key, "attack"))
    True
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def example_keys(key: Array, indices: Array) -> Array:
    """One key per example, `[B]`, from each example's own index: the batch it is in plays no part."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
