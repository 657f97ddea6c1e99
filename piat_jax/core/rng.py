"""Random keys derived from name, step and example: nothing is stored, and results do not depend on batching."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from piat_jax.core.types import Array

THREEFRY = "threefry2x32"


def named_key(key: Array, name: str) -> Array:
    """The key of the stream `name` under `key`; different names give independent streams.

    >>> import jax
    >>> key = jax.random.key(0)
    >>> bool(named_key(key, "attack") == named_key(key, "attack"))
    True
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def example_keys(key: Array, indices: Array) -> Array:
    """One key per example, `[B]`, from each example's index, independent of the rest of the batch.

    The keys are always threefry keys, because under vmap JAX's other generators draw an example's numbers from the
    whole batch.
    """
    key = _threefry(key)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def _threefry(key: Array) -> Array:
    if jax.random.key_impl(key) == THREEFRY:
        return key
    data = jax.random.key_data(key)
    key = jax.random.wrap_key_data(data[:2], impl=THREEFRY)
    for word in data[2:]:
        key = jax.random.fold_in(key, word)
    return key


def fold_in(keys: Array, *numbers: Array | int) -> Array:
    """Each of `keys[B]` with the numbers folded in, one after the other, for restarts, steps and so on."""
    for number in numbers:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
    return keys


def flat_draw(draw: Callable[..., Array], key: Array, shape: tuple[int, ...], dtype: Any, **options: Any) -> Array:
    """The numbers of jax.random's `draw(key, shape, dtype)`, drawn as a vector and reshaped.

    XLA:CPU takes seconds to compile a draw for each new shape with several axes, but a fraction of a second for a
    vector.

    >>> key = jax.random.key(0)
    >>> bool((flat_draw(jax.random.normal, key, (2, 3), "float32") == jax.random.normal(key, (2, 3))).all())
    True
    """
    return draw(key, (math.prod(shape),), dtype, **options).reshape(shape)


def symmetric_beta(alpha: Array | float, u: Array, v: Array) -> Array:
    """A Beta(alpha, alpha) variate from two uniform numbers in [0, 1), exact for any alpha above 0.

    With `t = sqrt(2 alpha (u^(-1/alpha) - 1)) cos(2 pi v)`, Student's t with 2 alpha degrees of freedom, it is
    `(1 + t / sqrt(2 alpha + t^2)) / 2`. jax.random.beta draws two gamma variates by rejection and takes seconds to
    compile.

    Source: Bailey (1994), Mathematics of Computation 62; Devroye (1996), Random variate generation in one line of code.

    >>> [round(symmetric_beta(1.0, jnp.array(0.5), jnp.array(v)).item(), 4) for v in (0.0, 0.5)]
    [0.8536, 0.1464]
    """
    cosine, s = jnp.cos(2.0 * jnp.pi * v), u ** (1.0 / alpha)
    # t^2 / (2 alpha) is (1 - s) cos^2 / s; written so that the root does not divide by s = 0.
    # Clipped, because rounding may leave [0, 1].
    return jnp.clip((1.0 + cosine * jnp.sqrt((1.0 - s) / (s + (1.0 - s) * cosine**2))) / 2.0, 0.0, 1.0)
