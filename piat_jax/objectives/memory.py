"""A table with one row per training example, addressed by the example's index."""

import jax.numpy as jnp

from piat_jax.core.types import Array


def of_examples(table: Array, indices: Array) -> Array:
    """The examples' rows; for an index beyond the table the row is NaN, which stops a run at its loss.

    >>> of_examples(jnp.array([1.0, 2.0]), jnp.array([1, 5])).tolist()
    [2.0, nan]
    """
    return table.at[indices].get(mode="fill", fill_value=jnp.nan)


def remember(table: Array, indices: Array, values: Array) -> Array:
    """The table with the examples' rows replaced.

    >>> remember(jnp.array([1.0, 2.0]), jnp.array([1]), jnp.array([5.0])).tolist()
    [1.0, 5.0]
    """
    return table.at[indices].set(values, mode="drop")
