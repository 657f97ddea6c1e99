"""Losses on logits: `[B, K]` in, one value per example `[B]` out, always float32.

They need no model and no key. Attacks maximise their loss, training minimises an objective's; the caller reduces over
examples. `labels` are class indices `[B]`. `cross_entropy`, `margin`, `boosted_cross_entropy` and `normalized_mse` also
take probabilities `[B, K]`, and are then the mean loss over labels drawn from these.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from piat_jax.core.checks import InputError, check_labels
from piat_jax.core.labels import check_target, of_label, smoothed
from piat_jax.core.types import Array


def correct(logits: Array, labels: Array) -> Array:
    """Whether the first highest logit is the label's, `[B]` bool; false if any logit is not finite."""
    return (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)


def misclassified(logits: Array, labels: Array) -> Array:
    """Whether the first highest logit is another class's, `[B]` bool; false if any logit is not finite."""
    return (jnp.argmax(logits, axis=-1) != labels) & jnp.all(jnp.isfinite(logits), axis=-1)


def label_and_best_other(values: Array, labels: Array) -> tuple[Array, Array]:
    """The label's value in `values[B, K]` and the highest value of the other classes, `[B]` float32 each.

    >>> [x.tolist() for x in label_and_best_other(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0]))]
    [[3.0], [2.0]]
    """
    check_labels("labels", labels, values)
    values = values.astype(jnp.float32)
    is_label = jax.nn.one_hot(labels, values.shape[-1], dtype=bool)
    of_class = jnp.sum(jnp.where(is_label, values, 0.0), axis=-1)
    return of_class, jnp.max(jnp.where(is_label, -jnp.inf, values), axis=-1)


def best_others(values: Array) -> Array:
    """For each class of `values[B, K]`, the highest value of the other classes, `[B, K]`.

    >>> best_others(jnp.array([[3.0, 1.0, 2.0]])).tolist()
    [[2.0, 3.0, 3.0]]
    """
    top, order = jax.lax.top_k(values, 2)
    return jnp.where(jnp.arange(values.shape[-1])[None] == order[:, :1], top[:, 1:], top[:, :1])


def cross_entropy(logits: Array, labels: Array, *, smoothing: Array | float = 0.0, over: str = "others") -> Array:
    """`-sum_k t_k log softmax(z)_k`, for a class `-log softmax(z)_y`; smoothed as in `core.labels.smoothed`.

    >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).tolist()
    [1.3862943649291992]
    """
    check_target("labels", labels, logits)
    if not (isinstance(smoothing, (int, float)) and smoothing == 0):
        labels = smoothed(labels, logits.shape[-1], smoothing, over)
    return -of_label(jax.nn.log_softmax(logits.astype(jnp.float32)), labels)


def margin(logits: Array, labels: Array, *, kappa: float = 50.0) -> Array:
    """The CW margin loss `-max(z_y - max_{j != y} z_j + kappa, 0)`: at its maximum, misclassified by a margin of kappa.

    In adversarial training "CW" means PGD on this loss (code of MAIL, SEAT, RAT; kappa = 50), not the optimiser of
    Carlini & Wagner (2017). The label's logit is masked by -inf in the maximum, while the codes subtract 1000.

    >>> margin(jnp.array([[3.0, 1.0, 0.0]]), jnp.array([0]), kappa=0.0).tolist()
    [-2.0]
    """
    check_target("labels", labels, logits)
    if labels.ndim > 1:
        logits = logits.astype(jnp.float32)
        return of_label(-jnp.maximum(logits - best_others(logits) + kappa, 0.0), labels)
    of_class, best_other = label_and_best_other(logits, labels)
    return -jnp.maximum(of_class - best_other + kappa, 0.0)


def margin_to_target(logits: Array, targets: Array, *, kappa: float = 50.0) -> Array:
    """The targeted CW margin loss `-max(max_{j != t} z_j - z_t + kappa, 0)`: at its maximum, `t` leads by kappa.

    Source: Carlini & Wagner (2017), arXiv:1608.04644, f_6.

    >>> margin_to_target(jnp.array([[3.0, 1.0, 0.0]]), jnp.array([1]), kappa=0.0).tolist()
    [-2.0]
    """
    of_target, best_other = label_and_best_other(logits, targets)
    return -jnp.maximum(best_other - of_target + kappa, 0.0)


def dlr(logits: Array, labels: Array) -> Array:
    """The difference of logits ratio `-(z_y - max_{j != y} z_j) / (z_(1) - z_(3) + 1e-12)`, `z_(1) >= z_(2) >= ...`.

    It is invariant to the scale of the logits, so large logits do not mask gradients as they do with the cross-entropy.
    It is in [-1, 0] while the label is correct. Once misclassified it is 1, without a gradient, if the label is third,
    and unbounded near a tie of the first three. The gradient flows through the denominator too.

    Raises:
      InputError: fewer than three classes.

    Source: AutoAttack, Croce & Hein (2020), arXiv:2003.01690, Eq. 6; the constant is the code's.

    >>> dlr(jnp.array([[3.0, 2.0, 1.0]]), jnp.array([0])).tolist()
    [-0.5]
    """
    _check_classes("dlr", logits, 3)
    of_class, best_other = label_and_best_other(logits, labels)
    top, _ = jax.lax.top_k(logits.astype(jnp.float32), 3)
    return (best_other - of_class) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Array, labels: Array, targets: Array) -> Array:
    """The targeted DLR loss `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)`; `targets[B]` are classes.

    Raises:
      InputError: fewer than four classes; use `targeted_margin`, which works with any number.

    Source: AutoAttack, Croce & Hein (2020), arXiv:2003.01690, Eq. 7; the constant is the code's.

    >>> targeted_dlr(jnp.array([[3.0, 2.0, 1.5, 0.5]]), jnp.array([0]), jnp.array([1])).tolist()
    [-0.5]
    """
    _check_classes("targeted_dlr", logits, 4)
    top, _ = jax.lax.top_k(logits.astype(jnp.float32), 4)
    return targeted_margin(logits, labels, targets) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def targeted_margin(logits: Array, labels: Array, targets: Array) -> Array:
    """`z_t - z_y`, positive if the target `t` beats the label; `targets[B]` are classes.

    >>> targeted_margin(jnp.array([[3.0, 1.0]]), jnp.array([0]), jnp.array([1])).tolist()
    [-2.0]
    """
    check_labels("labels", labels, logits)
    check_labels("targets", targets, logits)
    logits = logits.astype(jnp.float32)
    return of_label(logits, targets) - of_label(logits, labels)


def _check_classes(name: str, logits: Array, least: int) -> None:
    if logits.shape[-1] < least:
        raise InputError(f"{name} needs logits of at least {least} classes, not {logits.shape[-1]}; give a margin loss")


def probability_margin(logits: Array, labels: Array) -> Array:
    """`max_{j != y} p_j - p_y`, from -1 (certain of the label) to 1 (certain of another class).

    >>> probability_margin(jnp.zeros((1, 4)), jnp.array([0])).tolist()
    [0.0]
    """
    of_class, best_other = label_and_best_other(jax.nn.softmax(logits.astype(jnp.float32)), labels)
    return best_other - of_class


def boosted_cross_entropy(logits: Array, labels: Array) -> Array:
    """BCE: `-log p_y - log(1.0001 - max_{j != y} p_j + 1e-12)` (MART).

    The constants are those of MART's code, so the second term is between -1e-4 and 9.21; the paper has 1 and 0.

    >>> round(boosted_cross_entropy(jnp.zeros((1, 2)), jnp.array([0])).item(), 3)
    1.386
    """
    p = jax.nn.softmax(logits.astype(jnp.float32))
    if labels.ndim > 1:
        return cross_entropy(logits, labels) - of_label(jnp.log(1.0001 - best_others(p) + 1e-12), labels)
    _, best_other = label_and_best_other(p, labels)
    return cross_entropy(logits, labels) - jnp.log(1.0001 - best_other + 1e-12)


def kl_divergence(logits: Array, other_logits: Array) -> Array:
    """`KL(p || q) = sum_c p_c (log p_c - log q_c)` with `p = softmax(logits)`, `q = softmax(other_logits)`.

    Gradients flow through both arguments (TRADES does not detach its target).

    >>> kl_divergence(jnp.array([[0.0, 1.0]]), jnp.array([[0.0, 1.0]])).tolist()
    [0.0]
    """
    _check_pair(logits, other_logits)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_q = jax.nn.log_softmax(other_logits.astype(jnp.float32))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def kl_from_target(target: Array, logits: Array) -> Array:
    """`KL(t || p) = sum_c t_c (log t_c - log p_c)` with `p = softmax(logits)`; classes with `t_c = 0` add 0.

    >>> round(kl_from_target(jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2))).item(), 4)
    0.6931
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jnp.sum(xlogy(target, target) - target * log_p, axis=-1)


def jensen_shannon(logits: Array, other_logits: Array, *, temperature: Array | float = 1.0) -> Array:
    """`[KL(p || m) + KL(q || m)] / 2` with `p`, `q` softmaxes of `logits / temperature`, `m = (p + q) / 2`.

    Symmetric, in [0, log 2]; gradients flow through both arguments. As in Consistency-AT's code, m is at least 1e-8
    in the logarithm, and there is no factor `temperature^2`.

    >>> round(jensen_shannon(jnp.array([[0.0, 200.0]]), jnp.array([[200.0, 0.0]])).item(), 4)
    0.6931
    """
    _check_pair(logits, other_logits)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    log_q = jax.nn.log_softmax(other_logits.astype(jnp.float32) / temperature)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    log_m = jnp.log(jnp.maximum((p + q) / 2, 1e-8))
    return jnp.sum(p * (log_p - log_m) + q * (log_q - log_m), axis=-1) / 2


def squared_distance(logits: Array, other_logits: Array) -> Array:
    """`|z - z'|^2`, summed over classes: adversarial logit pairing (PIAT paper, Eq. 8).

    Public ports take the mean over classes instead, so their weights differ from ours by a factor of K.

    >>> squared_distance(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])).tolist()
    [5.0]
    """
    _check_pair(logits, other_logits)
    return jnp.sum((logits.astype(jnp.float32) - other_logits.astype(jnp.float32)) ** 2, axis=-1)


def cosine_distance(logits: Array, other_logits: Array) -> Array:
    """`1 - cos(z, z')` in [0, 2], computed as `| z/|z| - z'/|z'| |^2 / 2`, which is 0 if both vectors are 0.

    >>> cosine_distance(jnp.array([[3.0, 4.0]]), jnp.array([[-6.0, -8.0]])).round(4).tolist()
    [2.0]
    """
    _check_pair(logits, other_logits)
    difference = _unit(logits.astype(jnp.float32)) - _unit(other_logits.astype(jnp.float32))
    return jnp.sum(difference**2, axis=-1) / 2


def normalized_mse(logits: Array, adversarial_logits: Array, labels: Array, *, weight_gradient: bool = True) -> Array:
    """NMSE: `(1 - p_y) * | z/|z| - z'/|z'| |^2 = 2 (1 - p_y) (1 - cos(z, z'))` (PIAT paper, Eq. 11).

    Args:
      logits: `z`, on the clean images, `[B, K]`.
      adversarial_logits: `z'`, `[B, K]`.
      labels: `y`, `[B]` or `[B, K]`; `p_y` is the clean probability of the true class, the paper's `p_clean`.
      weight_gradient: whether to differentiate the weight `1 - p_y`. The paper does not say; MART differentiates the
        same weight, which is the default.

    Returns:
      `[B]` in [0, 4]. It is invariant to the scale of either logit vector, so it does not affect their norms.

    >>> z = jnp.array([[3.0, 4.0]])
    >>> normalized_mse(z, 10 * z, jnp.array([0])).round(6).tolist()
    [0.0]
    """
    check_target("labels", labels, logits)
    _check_pair(logits, adversarial_logits)
    logits, adversarial_logits = logits.astype(jnp.float32), adversarial_logits.astype(jnp.float32)
    weight = 1.0 - of_label(jax.nn.softmax(logits), labels)
    if not weight_gradient:
        weight = jax.lax.stop_gradient(weight)
    return weight * jnp.sum((_unit(logits) - _unit(adversarial_logits)) ** 2, axis=-1)


def _check_pair(logits: Array, other_logits: Array) -> None:
    if logits.shape != other_logits.shape:
        raise InputError(f"logits have shapes {logits.shape} and {other_logits.shape}; give logits of the same images")


def _unit(z: Array) -> Array:
    # Inside the root, so that the gradient at z = 0 is finite.
    return z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)
