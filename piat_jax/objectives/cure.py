"""Conserve, update, revise: CURE (Gowda et al., 2024)."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.averaging.interpolation import interpolate
from piat_jax.core.checks import InputError, check_range
from piat_jax.core.forward import forward_keys
from piat_jax.core.rng import named_key
from piat_jax.core.trees import copied
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Terms, Wrapper, WrapperState, wrapper
from piat_jax.objectives.wrapper_checks import check_attack_takes, innermost

HEADS = ("linear", "fc", "head", "logits")
"""Names of a network's last layer, whose gradient is left as it is."""


class Revised(NamedTuple):
    """The average that revises the weights, with statistics of its own forwards."""

    params: PyTree
    model_state: PyTree


class OfAverage(NamedTuple):
    """What the average makes of a batch."""

    clean: Array  # [B, K], its logits
    adversarial: Array
    model_state: PyTree  # its statistics after both forwards


@wrapper(
    "cure",
    title="CURE",
    summary="Keeps the weights of small gradient as they are, and draws the rest to a moving average's predictions.",
    paper="Gowda et al. (2024), arXiv:2401.14948",
)
class CURE(Wrapper):
    """CURE around any method: its loss L_i, a clean one, and what draws the model to the average of its weights.

        mean_i [ clean_weight CE(z_i, y_i) + robust_weight L_i + consistency ( KL(q_i || p_i) + KL(q'_i || p'_i) ) ]

    Conserve: in each array of weights the `share` of entries whose gradient is smallest in size has no gradient; the
    last layer is left alone. Revise: q and q' are the predictions of the average for x and x', constants. After each
    step, with probability `rate`, `wa <- d wa + (1 - d) w` with `d = min(1 - 1 / (n + 1), decay)` after n steps. The
    attack maximises `KL(p || p')`.

    Train-mode forwards: those inside, then x where it is not among them. The average forwards x and x' in training
    mode, with statistics of its own. The model is what is evaluated.

    Attributes:
      inner: the method, PGD-AT in the code; its attack must take `loss`, as `pgd` does, and start off the images.
      clean_weight: alpha, 0.1.
      robust_weight: 1 - alpha, 0.9.
      consistency: gamma, 1.
      share: 0.3.
      rate: 0.2.
      decay: 0.999.

    Source: Gowda et al. (2024), arXiv:2401.14948, and its code, with the README's numbers. The code has three ways to
    conserve; this is `rgp`, which its training with a warm-up sets. It starts from a network that has learned the clean
    images: give one as `config.model.weights`. An optimizer's momentum and weight decay move conserved weights, there
    as here.
    """

    clean_weight: float = 0.1
    robust_weight: float = 0.9
    consistency: float = 1.0
    share: float = 0.3
    rate: float = 0.2
    decay: float = 0.999

    attack_options: ClassVar[Mapping[str, Any]] = {"start": "normal"}
    rescales: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("share", "rate", "decay"):
            check_range(name, getattr(self, name), 0, 1)
        check_attack_takes(self, "loss")

    def check_part(self, examples: int) -> None:
        """Which weights are conserved depends on the whole batch's gradient, so it is not taken in parts."""
        raise InputError("microbatches: CURE conserves weights by the whole batch's gradient; leave it at 1")

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> Revised:
        """A copy of the weights and statistics."""
        return Revised(*copied(variables))

    @property
    def forwards(self) -> tuple[str, ...]:
        """Those inside, then clean if it has not been."""
        inner = super().forwards
        return inner if "clean" in inner else (*inner, "clean")

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """As inside, by the divergence from the clean prediction; with what the average makes of the batch."""
        clean = innermost(self).logits_fn(variables)(batch.images)
        context = context.with_attack(loss=lambda logits, _: losses.kl_divergence(clean, logits))
        adversarial = super().perturb(variables, objective_state, batch, context)
        images, (params, model_state) = self.inputs(adversarial), objective_state.own
        logits = {}
        for kind in ("clean", "adversarial"):
            keys = forward_keys(self.model, context.key, batch.indices, f"{kind} of the average")
            logits[kind], model_state = self.model.apply(params, model_state, images[kind], train=True, key=keys)
        return self.hand(adversarial, jax.lax.stop_gradient(OfAverage(**logits, model_state=model_state)))

    def differentiated(self, params: PyTree) -> PyTree:
        """The weights, whose gradient's smallest entries are left out."""
        return conserved(super().differentiated(params), self.share)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The loss inside and the clean cross-entropy, weighted, and the divergences from the average."""
        terms, average = super().terms(outputs, objective_state, context), self.handed(outputs.batch)
        clean, adversarial = outputs.logits["clean"], outputs.logits["adversarial"]
        divergence = losses.kl_divergence(average.clean, clean)
        divergence += losses.kl_divergence(average.adversarial, adversarial)
        other = self.clean_weight * losses.cross_entropy(clean, outputs.target) + self.consistency * divergence
        metrics = {**terms.metrics, "consistency_with_average": jnp.mean(divergence)}
        weight = self.robust_weight
        return Terms(weight * terms.adversarial, weight * terms.other + other, metrics)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """The average goes on where it is drawn to."""
        state, own = super().after_step(variables, objective_state, batch, aux, context), objective_state.own
        drawn = jax.random.uniform(named_key(context.key, "cure"), (), jnp.float32) < self.rate
        steps = context.step.astype(jnp.float32) + 1.0
        decay = jnp.where(drawn, jnp.minimum(1.0 - 1.0 / (steps + 1.0), self.decay), 1.0)
        params = interpolate(own.params, variables.params, decay)
        return state._replace(own=Revised(params, self.handed(batch).model_state))


@jax.custom_vjp
def conserved(params: PyTree, share: Array | float) -> PyTree:
    """The weights themselves; of their gradient the `share` of each array's entries that are smallest in size is 0.

    What is smaller than the quantile is left out, as `numpy.percentile` has it. The last layer's gradient stays.

    >>> gradient = jax.grad(lambda w: jnp.sum(jnp.array([1.0, -3.0, 2.0]) * conserved({"k": w}, 0.5)["k"]))
    >>> gradient(jnp.zeros(3)).tolist()
    [0.0, -3.0, 2.0]
    """
    return params


def _forward(params: PyTree, share: Array | float) -> tuple[PyTree, Array | float]:
    return params, share


def _backward(share: Array | float, gradient: PyTree) -> tuple[PyTree, Array]:
    def kept(path: tuple[Any, ...], value: Array) -> Array:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if any(head in names for head in HEADS):
            return value
        size = jnp.abs(value)
        return jnp.where(size < jnp.quantile(size, share), 0.0, value)

    return jax.tree_util.tree_map_with_path(kept, gradient), jnp.zeros_like(share)


conserved.defvjp(_forward, _backward)
