"""Class-wise calibrated fair adversarial training (Wei et al., 2023)."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.forward import num_classes
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Terms, Wrapper, WrapperState, reached, wrapper
from piat_jax.objectives.trades import TRADES
from piat_jax.objectives.wrapper_checks import innermost


class ClassRates(NamedTuple):
    """Robust accuracy by class, `[K]` each."""

    robust: Array  # int32, examples of this epoch that withstood their attack
    total: Array  # int32, examples of this epoch
    rate: Array  # robust accuracy in the previous epoch
    counted: Array  # whether a rate exists yet


@wrapper(
    "cfa",
    summary="Sets each class's radius and regularisation by its robust accuracy; the paper's full method is cfa+fawa.",
    paper="Wei et al. (2023), arXiv:2303.14460",
)
class CFA(Wrapper):
    """CFA around any method: class k is attacked with radius `(lambda1 + t_k) eps`, t_k its robust accuracy.

    Around TRADES the loss is calibrated as well (CCR): `mean_i [ (1 - b_i) CE(z_i, y_i) + b_i KL(p_i || p'_i) ]` with
    `b_k = (lambda2 + t_k) beta / (1 + (lambda2 + t_k) beta)`. This is TRADES' loss with `(lambda2 + t_k) beta` in
    place of beta, divided by `1 + (lambda2 + t_k) beta`; terms of inner wrappers are divided too. Around other
    methods only the radii change (CCM). Until `start`, and for classes not counted yet, both factors are 1.

    t_k is measured during the previous epoch, on the adversarial training examples and the logits of the loss.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method.
      eps: the attack's radius. An outer wrapper's radius per example replaces it; inner ECAS and LAS-AT use the class's
        radius as their nominal one. With LAS-AT's betas inside, beta is still TRADES' own, 1.
      lambda1: offset of the radii, 0.5.
      lambda2: offset of the weights, 0.5.
      start: share of the run's epochs before it begins, 10/200.

    Source: Wei et al. (2023), arXiv:2303.14460, and its code, with three differences. The code takes t_k as
    `K count_k / N`, which assumes balanced classes; here it is the class's own accuracy. The code forwards the clean
    batch in training mode after each step, for logging; this is not done here. The code supports ten classes only; here
    the model decides. The step size is the attack's for every class, as in the code. The third part, which averages
    weights over epochs whose worst class is good enough (FAWA), is `averaging.Gated`. The paper's method is both,
    `cfa+fawa` in a config.
    """

    eps: float = 8 / 255
    lambda1: float = 0.5
    lambda2: float = 0.5
    start: float = 10 / 200

    rescales: ClassVar[bool] = True
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"pgd_at": {"attack_batch_norm": "train"}}

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> ClassRates:
        """Counts of this epoch and rates of the previous one, `[K]` each."""
        classes = num_classes(self.model, variables, images)
        zeros = [jnp.zeros(classes, kind) for kind in (jnp.int32, jnp.int32, jnp.float32, bool)]
        return ClassRates(*zeros)

    def factor(self, offset: Array | float, own: ClassRates, labels: Array, context: Context) -> Array:
        """`offset + t_k` of each example's class, `[B]`."""
        calibrated = reached(self.start, context) & own.counted
        return jnp.where(calibrated, offset + own.rate, 1.0)[labels]

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft as the inner method does, with each class's radius."""
        factor = self.factor(self.lambda1, objective_state.own, batch.labels, context)
        context = context.with_attack(eps=context.attack.get("eps", self.eps) * factor)
        return super().perturb(variables, objective_state, batch, context)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms; around TRADES, its two parts are weighted by class."""
        terms, method = super().terms(outputs, objective_state, context), innermost(self.inner)
        if not isinstance(method, TRADES):
            return terms
        factor = self.factor(self.lambda2, objective_state.own, outputs.batch.clean.labels, context)
        scale = 1.0 / (1.0 + factor * method.beta)
        return terms._replace(adversarial=factor * scale * terms.adversarial, other=scale * terms.other)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Count the batch."""
        state, own = super().after_step(variables, objective_state, batch, aux, context), objective_state.own
        labels = batch.clean.labels
        robust = losses.correct(aux.logits["adversarial"], labels)
        own = own._replace(
            robust=own.robust.at[labels].add(robust.astype(jnp.int32)), total=own.total.at[labels].add(1)
        )
        return state._replace(own=own)

    def after_epoch(self, objective_state: WrapperState, context: Context) -> WrapperState:
        """Compute rates from the counts and reset the counts; a class that did not occur keeps its rate."""
        state, own = super().after_epoch(objective_state, context), objective_state.own
        occurred = own.total > 0
        rate = own.robust.astype(jnp.float32) / jnp.maximum(own.total, 1)
        own = ClassRates(
            robust=jnp.zeros_like(own.robust),
            total=jnp.zeros_like(own.total),
            rate=jnp.where(occurred, rate, own.rate),
            counted=own.counted | occurred,
        )
        return state._replace(own=own)
