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
    summary="One-vs-the-rest loss in place of the cross-entropy of examples with small logit margins.",
    paper="Kanai et al. (2023), arXiv:2207.10283",
)
class SOVR(Wrapper):
    """SOVR around any method: its adversarial part is `weight OVR(z'_i, y_i)` for a share of each batch.

    `OVR(z, y) = log(1 + exp(-z_y)) + sum_{k != y} log(1 + exp(z_k))`, and the share are the `round(share B)` examples
    of the smallest logit margins `z'_y - max_{k != y} z'_k`. All others keep the method's own adversarial part, which
    is the cross-entropy around PGD-AT. The attack stays the method's.

    Train-mode forwards: those inside.

    Attributes:
      inner: the method, PGD-AT in the paper.
      share: M, the share of a batch that is switched, 0.4.
      weight: lambda, 0.4.

    Source: Kanai et al. (2023), arXiv:2207.10283. No code is released, and of the text only the abstract was at hand
    when this was written; the paper tunes M and lambda for each data set, so look its values up before comparing. With
    soft labels t it is `sum_k t_k log(1 + exp(-z_k)) + (1 - t_k) log(1 + exp(z_k))`.
    """

    share: float = 0.4
    weight: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("share", self.share, 0, 1)

    def check_part(self, examples: int) -> None:
        """Margins are compared within a batch, so it is not taken in parts."""
        raise InputError("microbatches: SOVR switches the smallest margins of the whole batch; leave it at 1")

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The adversarial part inside, or the one-vs-the-rest loss."""
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
    """Whether each of `values[B]` is among the `round(share B)` smallest; of equal ones the first.

    >>> smallest(jnp.array([3.0, 1.0, 2.0, 1.0]), 0.5).tolist()
    [False, True, False, True]
    """
    rank = jnp.argsort(jnp.argsort(values, stable=True), stable=True)
    return rank < jnp.round(jnp.asarray(share, jnp.float32) * values.shape[0]).astype(rank.dtype)
