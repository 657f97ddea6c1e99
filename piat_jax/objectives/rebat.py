"""Distillation from a moving average of the weights: ReBAT (Wang et al., 2023) and RPAT++ (Wang & Liu, 2025)."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.averaging.interpolation import interpolate
from piat_jax.core.checks import check_range
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.trees import copied
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, LogitsFn, PyTree, Variables
from piat_jax.objectives.base import Outputs, Terms, Wrapper, WrapperState, reached, static, wrapper


class MovingAverage(NamedTuple):
    """The weight average; a copy of the weights until it has started."""

    params: PyTree
    model_state: PyTree
    started: Array  # bool


@wrapper(
    "rebat",
    title="ReBAT",
    summary="Late in training, pulls the model towards its weight average, which evaluation uses.",
    paper="Wang et al. (2023), arXiv:2310.19360",
)
class ReBAT(Wrapper):
    """ReBAT around any method: adds `beta KL(p_wa(x'_i) || p(x'_i))`, p_wa from the averaged weights, a constant.

    After each step `wa <- decay wa + (1 - decay) w`, for BatchNorm's running statistics too. Until `start` the term is
    off. Until the first step after `start` the average equals the weights. Evaluation uses the average, which is never
    written back to the weights.

    Train-mode forwards: those of the inner method. The average runs in evaluation mode.

    Attributes:
      inner: the method, PGD-AT in the paper.
      beta: 1; 2 for WRN-34-10 with CutMix.
      decay: 0.999.
      start: share of the run's epochs before it begins, 105/200: five epochs after the learning rate's first drop.
      strong: factor on the attack's eps from `strong_start` on: 1 for ReBAT, which does not change the attack; 1.25,
        10/255, for ReBAT++. The number of steps does not change, while ReBAT++ goes from 10 to 12.
      strong_start: share of the run's epochs, 100/200.
      eps: the attack's eps, for `strong`, unless an outer wrapper sets a radius.

    The other half of the method is the schedule: the learning rate is divided by d = 1.5 (1.7 in ReBAT++) at epochs 100
    and 150 of 200, where PGD-AT divides by 10.

    Source: Wang et al. (2023), arXiv:2310.19360, and its code, with three differences. In the code the average runs in
    training mode throughout epoch 105, because it was copied in that mode and is first evaluated at the epoch's end;
    here it always runs in evaluation mode. The code drops the term if it is 1e10 or more, which only hides a diverging
    run, and forwards the clean batch after each step, for logging; neither is done here. The code averages from the
    first step of epoch 105 on; here the average is a copy up to and including that step, so that after PIAT it begins
    at the interpolated weights.
    """

    beta: float = 1.0
    decay: float = 0.999
    start: float = 105 / 200
    strong: float = static(default=1.0)
    strong_start: float = 100 / 200
    eps: float = 8 / 255

    attack_options: ClassVar[Mapping[str, Any]] = {"l2_rule": "awp"}  # its L2 attack adds 1e-10 to |g|
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"pgd_at": {"attack_batch_norm": "train"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("decay", self.decay, 0, 1)

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> MovingAverage:
        """A copy of the weights and statistics, not yet an average."""
        params, model_state = copied(variables)
        return MovingAverage(params, model_state, jnp.zeros((), bool))

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft as the inner method does, with the radius scaled by `strong`."""
        if self.strong != 1:
            factor = jnp.where(reached(self.strong_start, context), self.strong, 1.0)
            context = context.with_attack(eps=context.attack.get("eps", self.eps) * factor)
        return super().perturb(variables, objective_state, batch, context)

    def divergence(self, outputs: Outputs, average: LogitsFn) -> Array:
        """`KL(p_wa(x') || p(x'))` of each example."""
        target = average(self.inputs(outputs.batch)["adversarial"])
        return losses.kl_divergence(target, outputs.logits["adversarial"])

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, plus the divergence from the average."""
        terms = super().terms(outputs, objective_state, context)
        average = jax.lax.stop_gradient(self.eval_variables(outputs.variables, objective_state))
        divergence = jax.lax.cond(
            reached(self.start, context),
            lambda: self.divergence(outputs, make_logits_fn(self.model, average)),
            lambda: jnp.zeros(outputs.batch.clean.labels.shape, jnp.float32),
        )
        metrics = {**terms.metrics, "divergence_from_average": jnp.mean(divergence)}
        return Terms(terms.adversarial, terms.other + self.beta * divergence, metrics)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Update the average; before `start` it remains a copy of the weights."""
        state, own = super().after_step(variables, objective_state, batch, aux, context), objective_state.own
        weight = jnp.where(own.started, self.decay, 0.0)
        params, model_state = interpolate(Variables(own.params, own.model_state), variables, weight)
        return state._replace(own=MovingAverage(params, model_state, reached(self.start, context)))

    def eval_variables(self, variables: Variables, objective_state: PyTree) -> Variables:
        """The average; before it has started, the current weights, which PIAT may have moved since the last step."""
        own = objective_state.own
        average = Variables(own.params, own.model_state)
        return jax.tree.map(lambda mean, now: jnp.where(own.started, mean, now), average, variables)


@wrapper(
    "rpatpp",
    title="RPAT++",
    summary="ReBAT with a target extrapolated from the average's prediction at the mid-point.",
    paper="Wang and Liu (2025), arXiv:2508.02186",
)
class RPATpp(ReBAT):
    """RPAT++ around any method: adds `beta KL( softmax(z_wa(x~_i) - (1 - r) z_wa(x_i)) || softmax(r z(x'_i)) )`.

    `x~ = x + r (x' - x)`. If z_wa is linear between x and x', the target is `r z_wa(x')`: the average teaches logits
    that change evenly along the perturbation. The term replaces ReBAT's; everything else is as in ReBAT.

    Train-mode forwards: those of the inner method. The average runs in evaluation mode, on x~ and x.

    Attributes:
      mix: r, the share of the perturbation in x~, 0.5.
      inner, beta, decay, start, strong, strong_start, eps: as in `ReBAT`.

    Source: Wang & Liu (2025), arXiv:2508.02186, and its code; the formula is only in the code. As in the code, only
    `z(x')` is differentiated, and RPAT's mean square error is not added. The code also clips x~ to the box, which has
    no effect.
    """

    mix: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("mix", self.mix, 0, 1)

    def divergence(self, outputs: Outputs, average: LogitsFn) -> Array:
        """Each example's divergence from the average's extrapolated prediction."""
        images = self.inputs(outputs.batch)
        clean, adversarial = images["clean"], images["adversarial"]
        between = average(clean + self.mix * (adversarial - clean)).astype(jnp.float32)
        target = between - (1.0 - self.mix) * average(clean).astype(jnp.float32)
        return losses.kl_divergence(target, self.mix * outputs.logits["adversarial"].astype(jnp.float32))
