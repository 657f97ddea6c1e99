"""Losses on logits: `[B, K]` in, one value per example `[B]` out, always float32.

No model and no key. What an attack is given is maximised, what an objective returns is minimised; the caller reduces.
"""

import jax
import jax.numpy as jnp

from piat_jax.core.types import Array


def correct(logits: Array, labels: Array) -> Array:
    """Whether the first highest logit is the label's, `[B]` bool; false where any logit is not finite."""
    return (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)


def cross_entropy(logits: Array, labels: Array, *, smoothing: Array | float = 0.0) -> Array:
    """`-log softmax(z)_y`; with smoothing s the target is `1 - s` on the label and `s / (K - 1)` on all others.

    >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).tolist()
    [1.3862943649291992]
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_label = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    if isinstance(smoothing, (int, float)) and smoothing == 0:
        return -of_label
    others = (jnp.sum(log_p, axis=-1) - of_label) / (logits.shape[-1] - 1)
    return -((1.0 - smoothing) * of_label + smoothing * others)


def margin(logits: Array, labels: Array, *, kappa: float = 50.0) -> Array:
    """The CW margin loss `-max(z_y - max_{j != y} z_j + kappa, 0)`: its maximiser is misclassified by kappa.

    "CW" in adversarial training is PGD on this loss (MAIL, SEAT, RAT code; kappa = 50), not the optimiser of
    Carlini & Wagner (2017). The other logits are masked by -inf, where the codes subtract 1000.

    >>> margin(jnp.array([[3.0, 1.0, 0.0]]), jnp.array([0]), kappa=0.0).tolist()
    [-2.0]
    """
    logits = logits.astype(jnp.float32)
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    label_logit = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    best_other = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return -jnp.maximum(label_logit - best_other + kappa, 0.0)


def kl_divergence(logits: Array, other_logits: Array) -> Array:
    """`KL(p || q) = sum_c p_c (log p_c - log q_c)` with `p = softmax(logits)`, `q = softmax(other_logits)`.

    Gradients flow through both arguments (TRADES does not detach its target).

    >>> kl_divergence(jnp.array([[0.0, 1.0]]), jnp.array([[0.0, 1.0]])).tolist()
    [0.0]
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_q = jax.nn.log_softmax(other_logits.astype(jnp.float32))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def squared_distance(logits: Array, other_logits: Array) -> Array:
    """`|z - z'|^2`, summed over classes: adversarial logit pairing (PIAT paper, Eq. 8).

    The public ports take the mean over classes instead, so a weight tuned for one is K times off for the other.

    >>> squared_distance(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])).tolist()
    [5.0]
    """
    return jnp.sum((logits.astype(jnp.float32) - other_logits.astype(jnp.float32)) ** 2, axis=-1)


def normalized_mse(logits: Array, adversarial_logits: Array, labels: Array, *, weight_gradient: bool = True) -> Array:
    """NMSE: `(1 - p_y) * | z/|z| - z'/|z'| |^2 = 2 (1 - p_y) (1 - cos(z, z'))` (PIAT paper, Eq. 11).

    Args:
      logits: `z`, on the clean images, `[B, K]`.
      adversarial_logits: `z'`, `[B, K]`.
      labels: `y`, `[B]`; `p_y` is the clean probability of the true class, the paper's `p_clean`.
      weight_gradient: whether the weight `1 - p_y` is differentiated. The paper does not say; MART's equal weight is,
        and that is the default.

    Returns:
      `[B]` in [0, 4]. It does not change when either logit vector is scaled, so it puts no pull on the norms.

    >>> z = jnp.array([[3.0, 4.0]])
    >>> normalized_mse(z, 10 * z, jnp.array([0])).round(6).tolist()
    [0.0]
    """
    logits, adversarial_logits = logits.astype(jnp.float32), adversarial_logits.astype(jnp.float32)
    weight = 1.0 - jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=-1)[:, 0]
    if not weight_gradient:
        weight = jax.lax.stop_gradient(weight)
    return weight * jnp.sum((_unit(logits) - _unit(adversarial_logits)) ** 2, axis=-1)


def _unit(z: Array) -> Array:
    # Inside the root, so that the gradient at z = 0 is finite.
    return z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)
