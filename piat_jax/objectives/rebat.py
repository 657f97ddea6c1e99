"""Taught by the moving average of its own weights: ReBAT (Wang et al., 2023) and RPAT++ (Wang & Liu, 2025)."""

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
    """The average, a copy of the weights until it has started."""

    params: PyTree
    model_state: PyTree
    started: Array  # bool


@wrapper(
    "rebat",
    title="ReBAT",
    summary="Late in training, pulls the model towards its weight average, which is what is evaluated.",
    paper="Wang et al. (2023), arXiv:2310.19360",
)
class ReBAT(Wrapper):
    """ReBAT around any method: add `beta KL(p_wa(x'_i) || p(x'_i))`, p_wa of the averaged weights, a constant.

    `wa <- decay wa + (1 - decay) w` after each step, BatchNorm's statistics alike. Until `start` the term is off, and
    until the first step after it the average is the weights themselves. The average is what the method evaluates, and
    is never written back.

    Train-mode forwards: those inside. The average is forwarded in evaluation mode.

    Attributes:
      inner: the method, PGD-AT in the paper.
      beta: 1; 2 for WRN-34-10 with CutMix.
      decay: 0.999.
      start: share of the run's epochs before it begins, 105/200: five epochs after the learning rate's first drop.
      strong: factor on the attack's eps from `strong_start` on; 1, ReBAT, leaves the attack alone, and 1.25, which is
        10/255, is ReBAT++. The steps stay those of the attack, where ReBAT++ goes from 10 to 12.
      strong_start: share of the run's epochs, 100/200.
      eps: the attack's, for `strong`; a radius that a wrapper outside sets takes its place.

    The other half of the method is the schedule: the learning rate is divided by d = 1.5 (1.7 in ReBAT++) at epochs 100
    and 150 of 200, where PGD-AT divides by 10.

    Source: Wang et al. (2023), arXiv:2310.19360, and its code. There the average runs in training mode throughout epoch
    105, having been copied in that mode and first evaluated at its end; here it never does. The code leaves the term
    out where it is 1e10 or more, which only hides a run that diverges, and forwards the clean batch after each step,
    for logging; neither is done here. Its average takes in the first step of epoch 105 with the decay already; ours is
    a copy up to that step, so that behind PIAT it begins at the interpolated weights.
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
        """A copy of the weights and statistics, which is no average yet."""
        params, model_state = copied(variables)
        return MovingAverage(params, model_state, jnp.zeros((), bool))

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """As inside, within a larger radius where `strong` says so."""
        if self.strong != 1:
            factor = jnp.where(reached(self.strong_start, context), self.strong, 1.0)
            context = context.with_attack(eps=context.attack.get("eps", self.eps) * factor)
        return super().perturb(variables, objective_state, batch, context)

    def divergence(self, outputs: Outputs, average: LogitsFn) -> Array:
        """`KL(p_wa(x') || p(x'))` of each example."""
        target = average(self.inputs(outputs.batch)["adversarial"])
        return losses.kl_divergence(target, outputs.logits["adversarial"])

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """As inside, and the divergence from the average."""
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
        """The average goes on, or is a copy still."""
        state, own = super().after_step(variables, objective_state, batch, aux, context), objective_state.own
        weight = jnp.where(own.started, self.decay, 0.0)
        params, model_state = interpolate(Variables(own.params, own.model_state), variables, weight)
        return state._replace(own=MovingAverage(params, model_state, reached(self.start, context)))

    def eval_variables(self, variables: Variables, objective_state: PyTree) -> Variables:
        """The average; until it has begun the weights, which may have moved since the last step (PIAT)."""
        own = objective_state.own
        average = Variables(own.params, own.model_state)
        return jax.tree.map(lambda mean, now: jnp.where(own.started, mean, now), average, variables)


@wrapper(
    "rpatpp",
    title="RPAT++",
    summary="ReBAT whose target is the average's prediction extrapolated from the mid-point.",
    paper="Wang and Liu (2025), arXiv:2508.02186",
)
class RPATpp(ReBAT):
    """RPAT++ around any method: `beta KL( softmax(z_wa(x~_i) - (1 - r) z_wa(x_i)) || softmax(r z(x'_i)) )` is added.

    `x~ = x + r (x' - x)`. Where `z_wa(x~)` lies between those of its ends as x~ does, the target is `r z_wa(x')`: the
    average teaches a perception that changes evenly on the way to x'. It takes the place of ReBAT's term; all else is
    ReBAT.

    Train-mode forwards: those inside. The average is forwarded in evaluation mode, on x~ and x.

    Attributes:
      mix: r, the share of the perturbation in x~, 0.5.
      inner, beta, decay, start, strong, strong_start, eps: as in `ReBAT`.

    Source: Wang & Liu (2025), arXiv:2508.02186, and its code, which has the formula; the paper does not. As in the code
    only `z(x')` is differentiated, and RPAT's mean square error is not added. The code clips x~ to the box, where it
    is already.
    """

    mix: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("mix", self.mix, 0, 1)

    def divergence(self, outputs: Outputs, average: LogitsFn) -> Array:
        """The divergence from the average's view of the perturbation, of each example."""
        images = self.inputs(outputs.batch)
        clean, adversarial = images["clean"], images["adversarial"]
        between = average(clean + self.mix * (adversarial - clean)).astype(jnp.float32)
        target = between - (1.0 - self.mix) * average(clean).astype(jnp.float32)
        return losses.kl_divergence(target, self.mix * outputs.logits["adversarial"].astype(jnp.float32))
