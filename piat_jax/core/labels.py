"""Labels as class indices `[B]` or as class probabilities `[B, K]`."""

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_array, check_choice, check_labels, check_range
from piat_jax.core.types import Array

OVER = ("others", "all")
"""The classes that label smoothing spreads over: the K - 1 other classes, or all K."""


def hard(labels: Array) -> Array:
    """The class of each example, `[B]`: for probabilities the most probable class; ties go to the first.

    >>> hard(jnp.array([[0.2, 0.8], [1.0, 0.0]])).tolist(), hard(jnp.array([1, 0])).tolist()
    ([1, 0], [1, 0])
    """
    check_array("labels", labels)
    return jnp.argmax(labels, axis=-1) if labels.ndim > 1 else labels


def probabilities(labels: Array, classes: int) -> Array:
    """Labels as probabilities `[B, K]`: probabilities unchanged, class indices as float32 one-hot vectors.

    >>> probabilities(jnp.array([1]), 2).tolist()
    [[0.0, 1.0]]
    """
    return labels if labels.ndim > 1 else jax.nn.one_hot(labels, classes, dtype=jnp.float32)


def smoothed(labels: Array, classes: int, smoothing: Array | float, over: str = "others") -> Array:
    """Label smoothing: the target t with a share s spread over classes, `[B, K]`.

    `(1 - s) t + s (1 - t) / (K - 1)` for "others", `(1 - s) t + s / K` for "all". A label keeps 1 - s with "others",
    and 1 - s + s / K with "all", as in PyTorch's `CrossEntropyLoss(label_smoothing=s)`.

    Args:
      labels: `[B]` integers, or `[B, K]` probabilities.
      classes: K, at least 2.
      smoothing: s in [0, 1].
      over: "others" or "all".

    Raises:
      InputError: a share outside [0, 1], or an unknown choice.

    >>> [smoothed(jnp.array([1]), 2, 0.5, over).tolist() for over in ("others", "all")]
    [[[0.5, 0.5]], [[0.25, 0.75]]]
    """
    check_range("smoothing", smoothing, 0, 1)
    check_choice("over", over, OVER)
    target = probabilities(labels, classes)
    spread = 1.0 / classes if over == "all" else (1.0 - target) / (classes - 1)
    return (1.0 - smoothing) * target + smoothing * spread


def of_label(values: Array, labels: Array) -> Array:
    """The label's entry of `values[B, K]`, or the mean under the label's probabilities: `sum_k t_k values_k`, `[B]`.

    >>> of_label(jnp.array([[1.0, 3.0]]), jnp.array([1])), of_label(jnp.array([[1.0, 3.0]]), jnp.array([[0.5, 0.5]]))
    (Array([3.], dtype=float32), Array([2.], dtype=float32))
    """
    if labels.ndim > 1:
        # A probability of 0 adds 0, even if its value is infinite.
        return jnp.sum(jnp.where(labels > 0, labels * values, 0.0), axis=-1)
    return jnp.take_along_axis(values, labels[:, None], axis=-1)[:, 0]


def check_target(argument: str, labels: Array, logits: Array) -> None:
    """Raise InputError unless `labels` are class indices `[B]` or probabilities `[B, K]` for `logits[B, K]`.

    >>> check_target("labels", jnp.zeros((2, 3)), jnp.zeros((2, 4)))
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: labels have shape (2, 3) for logits of shape (2, 4); give [B] or [B, K]
    """
    if getattr(labels, "ndim", 0) < 2 or not jnp.issubdtype(labels.dtype, jnp.floating):
        check_labels(argument, labels, logits)
    elif labels.shape != logits.shape:
        raise InputError(f"{argument} have shape {labels.shape} for logits of shape {logits.shape}; give [B] or [B, K]")
