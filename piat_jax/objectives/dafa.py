"""Distance-aware fair adversarial training (Lee et al., 2024)."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.core.forward import num_classes
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Terms, Wrapper, WrapperState, wrapper
from piat_jax.objectives.trades import TRADES
from piat_jax.objectives.wrapper_checks import attack_options, check_attack_takes, innermost


class ClassWeights(NamedTuple):
    """Class weights, and the sums they are computed from."""

    weights: Array  # [K], 1 until they are computed
    total: Array  # [K, K], adversarial predictions of this epoch, summed by class
    counts: Array  # [K] int32, examples of this epoch


@wrapper(
    "dafa",
    title="DAFA",
    summary="Sets each class's radius and loss weight once, from its similarity to the other classes.",
    paper="Lee et al. (2024), arXiv:2401.12532",
)
class DAFA(Wrapper):
    """DAFA around any method: class k has attack radius `W_k eps`, step size `W_k step_size` and loss weight `W_k`.

        W_k = 1 + lam sum_{j != k} sign(S_jj - S_kk) S_kj S_jj   with sign(0) = -1

    S_k is the mean prediction for class k's adversarial training examples, from the logits of the loss, in the last
    epoch before `start`. Until then all W are 1; afterwards they are fixed. W_k multiplies the clean cross-entropy of
    TRADES, and the adversarial part of any other method.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method, TRADES in the paper; its attack must take `eps` and `step_size`, as `pgd` does.
      eps: the attack's radius, unless an outer wrapper sets one.
      lam: lambda, 1.
      start: share of the run's epochs before it begins, 70/110.

    Source: Lee et al. (2024), arXiv:2401.12532, and its code. The code's PGD-AT takes a second step after each weighted
    step, without the weights, and projects onto the ball of `eps`; this is not done here. The formula allows weights
    below 0, which are 0 here. The code's TRADES forwards x' first.
    """

    eps: float = 8 / 255
    lam: float = 1.0
    start: float = 70 / 110

    rescales: ClassVar[bool] = True
    default_inner: ClassVar[str] = "trades"
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"trades": {"clean_forwards": 1}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attack_takes(self, "eps", "step_size")

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> ClassWeights:
        """Weights of 1 and empty sums."""
        classes = num_classes(self.model, variables, images)
        return ClassWeights(
            jnp.ones(classes, jnp.float32), jnp.zeros((classes, classes), jnp.float32), jnp.zeros(classes, jnp.int32)
        )

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft as the inner method does, with each class's radius and step size."""
        weights = objective_state.own.weights[batch.labels]
        step_size = context.attack.get("step_size", attack_options(self.inner).get("step_size", 2 / 255))
        context = context.with_attack(eps=weights * context.attack.get("eps", self.eps), step_size=weights * step_size)
        return super().perturb(variables, objective_state, batch, context)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, with the cross-entropy weighted by class."""
        terms = super().terms(outputs, objective_state, context)
        weights = objective_state.own.weights[outputs.batch.clean.labels]
        if isinstance(innermost(self.inner), TRADES):
            return terms._replace(other=weights * terms.other)
        return terms._replace(adversarial=weights * terms.adversarial)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Add the batch's adversarial predictions to the sums of their classes."""
        state, own = super().after_step(variables, objective_state, batch, aux, context), objective_state.own
        labels, p = batch.clean.labels, jax.nn.softmax(aux.logits["adversarial"].astype(jnp.float32))
        own = own._replace(total=own.total.at[labels].add(p), counts=own.counts.at[labels].add(1))
        return state._replace(own=own)

    def after_epoch(self, objective_state: WrapperState, context: Context) -> WrapperState:
        """Compute the weights after the last epoch before `start`; reset the sums."""
        state, own = super().after_epoch(objective_state, context), objective_state.own
        begins = jnp.round(self.start * jnp.asarray(context.epochs, jnp.float32)).astype(jnp.int32)
        due = context.epoch + 1 == jnp.maximum(begins, 1)
        similarity = own.total / jnp.maximum(own.counts, 1)[:, None]
        weights = jnp.where(due, class_weights(similarity, self.lam), own.weights)
        return state._replace(own=ClassWeights(weights, jnp.zeros_like(own.total), jnp.zeros_like(own.counts)))


def class_weights(similarity: Array, lam: Array | float) -> Array:
    """`max(1 + lam sum_{j != k} sign(S_jj - S_kk) S_kj S_jj, 0)` with `sign(0) = -1`, `[K]`, from S `[K, K]`.

    >>> class_weights(jnp.array([[0.75, 0.25], [0.5, 0.5]]), 1.0).tolist()
    [0.875, 1.375]
    """
    own = jnp.diagonal(similarity)
    sign = jnp.where(own[None, :] > own[:, None], 1.0, -1.0) * (1.0 - jnp.eye(own.shape[0]))
    return jnp.maximum(1.0 + lam * jnp.sum(sign * similarity * own[None, :], axis=-1), 0.0)
