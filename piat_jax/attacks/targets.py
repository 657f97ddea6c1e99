"""Target classes of targeted attacks."""

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import InputError, check_count
from piat_jax.core.types import Array


def ranked_others(logits: Array, labels: Array) -> Array:
    """All classes except the label by falling logit, `[B, K - 1]`; ties go to the first class.

    >>> ranked_others(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([2])).tolist()
    [[0, 1]]
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    # The label comes last whatever its logit, and is cut off.
    return jnp.argsort(jnp.where(is_label, jnp.inf, -logits.astype(jnp.float32)), axis=1, stable=True)[:, :-1]


def check_targets(targets: Array | int, batch: int) -> None:
    """Raise InputError unless `targets` is a number of at least 1, or one class for each of `batch` examples."""
    if jnp.ndim(targets) == 0:
        check_count("targets", targets, 1)
    elif jnp.shape(targets) != (batch,):
        raise InputError(
            f"targets has shape {jnp.shape(targets)}; give a number, or one class for each of {batch} examples"
        )


def lead(logits: Array, labels: Array) -> Array:
    """`max_{j != y} z_j - z_y`, `[B]`: above 0 where misclassified.

    >>> lead(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0])).tolist()
    [-1.0]
    """
    of_label, best_other = losses.label_and_best_other(logits, labels)
    return best_other - of_label
