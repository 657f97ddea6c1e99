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
    """How robust each class was, `[K]` each."""

    robust: Array  # int32, examples of this epoch that withstood their attack
    total: Array  # int32, examples of this epoch
    rate: Array  # of the epoch before
    counted: Array  # whether there is a rate yet


@wrapper(
    "cfa",
    summary="Radius and regularisation of each class by how robust it is; the whole of the paper is cfa+fawa.",
    paper="Wei et al. (2023), arXiv:2303.14460",
)
class CFA(Wrapper):
    """CFA around any method: class k is attacked within `(lambda1 + t_k) eps`, t_k being its robust accuracy.

    Around TRADES the loss is calibrated as well (CCR): `mean_i [ (1 - b_i) CE(z_i, y_i) + b_i KL(p_i || p'_i) ]` with
    `b_k = (lambda2 + t_k) beta / (1 + (lambda2 + t_k) beta)`. That is TRADES's loss with `(lambda2 + t_k) beta` in
    place of beta, divided by `1 + (lambda2 + t_k) beta`; terms that wrappers inside add are divided alike. Around other
    methods only the radii change (CCM). Until `start`, and for a class not counted yet, both factors are 1.

    t_k is counted during the epoch before, on the training adversaries, with the logits that the loss is made of.

    Train-mode forwards: those inside.

    Attributes:
      inner: the method.
      eps: the attack's; a radius that a wrapper outside sets per example takes its place, and ECAS and LAS-AT inside
        take the class's for their nominal one. With LAS-AT's betas inside, beta is still TRADES' own, 1.
      lambda1: of the radii, 0.5.
      lambda2: of the weights, 0.5.
      start: share of the run's epochs before it begins, 10/200.

    Source: Wei et al. (2023), arXiv:2303.14460, and its code. Three things differ from the code. It takes t_k as
    `K count_k / N`, which assumes balanced classes; here it is the class's own share. It forwards the clean batch in
    training mode after each step, for logging; not done here. It knows ten classes only; here they are the model's. The
    step size stays the attack's for every class, as there. The third part, the average of the weights over epochs whose
    worst class is good enough (FAWA), is `averaging.Gated`: the paper's method is both, `cfa+fawa` in a config.
    """

    eps: float = 8 / 255
    lambda1: float = 0.5
    lambda2: float = 0.5
    start: float = 10 / 200

    rescales: ClassVar[bool] = True
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"pgd_at": {"attack_batch_norm": "train"}}

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> ClassRates:
        """Counts of this epoch and rates of the one before, `[K]` each."""
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
        """As inside, each class within its own radius."""
        factor = self.factor(self.lambda1, objective_state.own, batch.labels, context)
        context = context.with_attack(eps=context.attack.get("eps", self.eps) * factor)
        return super().perturb(variables, objective_state, batch, context)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """As inside, the two parts of TRADES weighted by class."""
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
        """Rates from the counts, which begin anew; a class that did not occur keeps its rate."""
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
