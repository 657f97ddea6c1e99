"""Pytrees: copies and leaf shapes."""

import jax
import jax.numpy as jnp

from piat_jax.core.types import PyTree


def copied(tree: PyTree) -> PyTree:
    """A copy of the tree in new buffers: a training step that donates its state can donate each buffer only once."""
    if jax.process_count() > 1:  # device_put accepts only arrays of this process
        return jax.tree.map(jnp.copy, tree)
    return jax.device_put(tree, may_alias=False)  # unlike jnp.copy, does not compile per shape


def leaf_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf by its path.

    >>> leaf_shapes({"a": {"w": jnp.zeros((2, 3))}})
    {'a/w': (2, 3)}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
