"""Switching one-vs-the-rest loss (Kanai et al., 2023)."""

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import InputError, check_range
from piat_jax.core.labels import probabilities
from piat_jax.core.types import Array, Context, PyTree
from piat_jax.objectives.base import Outputs, Terms, Wrapper, wrapper


@wrapper(
    "sovr",
    title="SOVR",
    summary="Replaces the cross-entropy of examples with small logit margins by a one-vs-the-rest loss.",
    paper="Kanai et al. (2023), arXiv:2207.10283",
)
class SOVR(Wrapper):
    """SOVR around any method: for a share of each batch, the adversarial part is `weight OVR(z'_i, y_i)`.

    `OVR(z, y) = log(1 + exp(-z_y)) + sum_{k != y} log(1 + exp(z_k))`. The share consists of the `round(share B)`
    examples with the smallest logit margins `z'_y - max_{k != y} z'_k`. All other examples keep the method's
    adversarial part, which is the cross-entropy around PGD-AT. The attack does not change.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method, PGD-AT in the paper.
      share: M, the share of a batch that is switched, 0.4.
      weight: lambda, 0.4.

    Source: Kanai et al. (2023), arXiv:2207.10283. No code is released, and only the paper's abstract was available. The
    paper tunes M and lambda for each data set, so look up its values before comparing. With soft labels t, OVR is
    `sum_k t_k log(1 + exp(-z_k)) + (1 - t_k) log(1 + exp(z_k))`.
    """

    share: float = 0.4
    weight: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("share", self.share, 0, 1)

    def check_part(self, examples: int) -> None:
        """Refuse parts: margins are compared within the full batch."""
        raise InputError("microbatches: SOVR switches the smallest margins of the full batch; leave it at 1")

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, with the one-vs-the-rest loss for the switched examples."""
        terms = super().terms(outputs, objective_state, context)
        logits = outputs.logits["adversarial"]
        margins = logit_margin(jax.lax.stop_gradient(logits), outputs.batch.clean.labels)
        switched = smallest(margins, self.share)
        one_vs_rest = self.weight * one_vs_rest_loss(logits, outputs.target)
        metrics = {**terms.metrics, "switched": jnp.mean(switched.astype(jnp.float32))}
        return terms._replace(adversarial=jnp.where(switched, one_vs_rest, terms.adversarial), metrics=metrics)


def one_vs_rest_loss(logits: Array, target: Array) -> Array:
    """`sum_k t_k log(1 + exp(-z_k)) + (1 - t_k) log(1 + exp(z_k))`, `[B]`; the target is `[B]` labels or `[B, K]`.

    >>> round(one_vs_rest_loss(jnp.zeros((1, 3)), jnp.array([0])).item(), 4)
    2.0794
    """
    logits = logits.astype(jnp.float32)
    target = probabilities(target, logits.shape[-1])
    return jnp.sum(target * jax.nn.softplus(-logits) + (1.0 - target) * jax.nn.softplus(logits), axis=-1)


def logit_margin(logits: Array, labels: Array) -> Array:
    """`z_y - max_{k != y} z_k`, `[B]`.

    >>> logit_margin(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0])).tolist()
    [1.0]
    """
    of_label, best_other = losses.label_and_best_other(logits, labels)
    return of_label - best_other


def smallest(values: Array, share: Array | float) -> Array:
    """Whether each of `values[B]` is among the `round(share B)` smallest; ties go to the first.

    >>> smallest(jnp.array([3.0, 1.0, 2.0, 1.0]), 0.5).tolist()
    [False, True, False, True]
    """
    rank = jnp.argsort(jnp.argsort(values, stable=True), stable=True)
    return rank < jnp.round(jnp.asarray(share, jnp.float32) * values.shape[0]).astype(rank.dtype)
