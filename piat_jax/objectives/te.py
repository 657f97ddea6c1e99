"""Adversarial training with temporal ensembling, TE (Dong et al., 2022)."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_count, check_range, check_share
from piat_jax.core.forward import num_classes
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Resources, Terms, Wrapper, WrapperState, reached, static, wrapper
from piat_jax.objectives.memory import of_examples, remember
from piat_jax.objectives.trades import TRADES
from piat_jax.objectives.wrapper_checks import check_attack_takes, innermost


class Ensemble(NamedTuple):
    """The ensembled predictions of each training example."""

    predictions: Array  # [N, K], 0 where an example has not been seen since `start`


class Ensembled(NamedTuple):
    """A batch's rows, updated while crafting."""

    predictions: Array  # [B, K], the rows to store
    target: Array  # [B, K], the rows normalised to sum 1; 0 before `start`


@wrapper(
    "te",
    title="TE",
    summary="Pulls each example's prediction towards the ensemble of its predictions in earlier epochs.",
    paper="Dong et al. (2022), arXiv:2106.01606",
)
class TE(Wrapper):
    """TE around any method: adds `w mean_k (p_k - q_k)^2`, q the temporal ensemble of an example's clean predictions.

    p is the prediction for x' (for x around TRADES). From `start` on, each time an example is seen,
    `t <- momentum t + (1 - momentum) p(x)`, in evaluation mode before the attack, and `q = t / sum_k t_k`. The weight w
    grows as `weight exp(-5 (1 - s)^2)`, with s from 0 at `start` to 1 at `full`, and is 0 before `start`. The attack
    maximises its own loss plus the term for x'; around TRADES, beta times its own loss plus the term.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method; its attack must take `loss`, as `pgd` does.
      examples: N, the number of training examples; a larger index gives a loss of NaN. Configs set it automatically.
      weight: 300.
      momentum: 0.9.
      start: share of the run's epochs before it begins: epoch 90 (1-based) of 200.
      full: share of the run's epochs at which the weight is at its maximum: epoch 150 (1-based) of 200.

    Source: Dong et al., "Exploring memorization in adversarial training" (ICLR 2022), arXiv:2106.01606, and its code.
    Each view of an example (`Consistency`) has its own ensemble.
    """

    examples: int = static()
    weight: float = 300.0
    momentum: float = 0.9
    start: float = 89 / 200
    full: float = 149 / 200

    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"trades": {"clean_forwards": 1}}

    @classmethod
    def from_fields(cls, inner: Any, fields: Mapping[str, Any], resources: Resources) -> Self:
        """As for any wrapper; the training examples are counted."""
        return cls(inner, **{**fields, "examples": resources.examples})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("examples", self.examples, 1)
        check_range("momentum", self.momentum, 0, 1)
        check_share("full", self.full)
        check_attack_takes(self, "loss")
        concrete = all(isinstance(share, (int, float)) for share in (self.start, self.full))
        if concrete and self.full < self.start:
            raise InputError(f"full={self.full} is before start={self.start}; give a later share of the run")

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> Ensemble:
        """Rows of 0: no example has been seen yet."""
        classes = num_classes(self.model, variables, images)
        return Ensemble(jnp.zeros((self.examples * self.views, classes), jnp.float32))

    def weight_now(self, context: Context) -> Array:
        """The weight w in this epoch."""
        epochs = jnp.asarray(context.epochs, jnp.float32)
        begin, end = self.start * epochs, self.full * epochs
        left = jnp.clip((end - context.epoch.astype(jnp.float32)) / jnp.maximum(end - begin, 1e-6), 0.0, 1.0)
        return jnp.where(reached(self.start, context), self.weight * jnp.exp(-5.0 * left**2), 0.0)

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft with the term added to the attack's loss; attach the batch's rows."""
        method, before = innermost(self), of_examples(objective_state.own.predictions, batch.indices)
        weight = self.weight_now(context)

        def ensembled() -> Ensembled:
            p = jax.nn.softmax(method.logits_fn(variables)(batch.images).astype(jnp.float32))
            predictions = self.momentum * before + (1.0 - self.momentum) * p
            total = jnp.sum(predictions, axis=-1, keepdims=True)
            return Ensembled(predictions, predictions / jnp.where(total == 0, 1.0, total))

        rows = jax.lax.cond(reached(self.start, context), ensembled, lambda: Ensembled(before, jnp.zeros_like(before)))
        rows = jax.lax.stop_gradient(rows)
        share = 1.0 / jnp.maximum(method.beta, 1e-6) if isinstance(method, TRADES) else 1.0

        def added(logits: Array, labels: Array) -> Array:
            return share * weight * mean_squared_error(logits, rows.target)

        adversarial = super().perturb(variables, objective_state, batch, context.with_attack(added_loss=added))
        return self.hand(adversarial, rows)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, plus the distance from the ensemble."""
        terms = super().terms(outputs, objective_state, context)
        kind = "clean" if isinstance(innermost(self), TRADES) else "adversarial"
        distance = mean_squared_error(outputs.logits[kind], self.handed(outputs.batch).target)
        weight = self.weight_now(context)
        metrics = {**terms.metrics, "ensemble_weight": weight}
        return terms._replace(other=terms.other + weight * distance, metrics=metrics)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Store the batch's rows."""
        state = super().after_step(variables, objective_state, batch, aux, context)
        rows = remember(state.own.predictions, batch.clean.indices, self.handed(batch).predictions)
        return state._replace(own=Ensemble(rows))


def mean_squared_error(logits: Array, target: Array) -> Array:
    """`mean_k (softmax(z)_k - q_k)^2`, `[B]`.

    >>> mean_squared_error(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])).tolist()
    [0.25]
    """
    return jnp.mean((jax.nn.softmax(logits.astype(jnp.float32)) - target) ** 2, axis=-1)
