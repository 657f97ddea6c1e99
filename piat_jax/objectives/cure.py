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
"""Names of a network's last layer, whose gradient is kept."""


class Revised(NamedTuple):
    """The average that revises the weights, with running statistics from its own forwards."""

    params: PyTree
    model_state: PyTree


class OfAverage(NamedTuple):
    """The average's outputs for a batch."""

    clean: Array  # [B, K] logits
    adversarial: Array  # [B, K] logits
    model_state: PyTree  # its running statistics after both forwards


@wrapper(
    "cure",
    title="CURE",
    summary="Zeroes the smallest gradients of the weights and pulls predictions towards a moving average's.",
    paper="Gowda et al. (2024), arXiv:2401.14948",
)
class CURE(Wrapper):
    """CURE around any method: its loss L_i, a clean loss, and divergences from an average of the weights.

        mean_i [ clean_weight CE(z_i, y_i) + robust_weight L_i + consistency ( KL(q_i || p_i) + KL(q'_i || p'_i) ) ]

    Conserve: in each weight array, the `share` of entries with the smallest gradient magnitude receives no gradient,
    except in the last layer. Revise: q and q' are the average's predictions for x and x', treated as constants. After
    each step, with probability `rate`, `wa <- d wa + (1 - d) w` with `d = min(1 - 1 / (n + 1), decay)` after n steps.
    The attack maximises `KL(p || p')`.

    Train-mode forwards: those of the inner method, then x unless the inner method forwards x. The average forwards x
    and x' in training mode, with its own running statistics. Evaluation uses the model, not the average.

    Attributes:
      inner: the method, PGD-AT in the code; its attack must take `loss`, as `pgd` does, and must not start at the clean
        images.
      clean_weight: alpha, 0.1.
      robust_weight: 1 - alpha, 0.9.
      consistency: gamma, 1.
      share: 0.3.
      rate: 0.2.
      decay: 0.999.

    Source: Gowda et al. (2024), arXiv:2401.14948, and its code, with the README's numbers. The code can conserve in
    three ways; this is `rgp`, which it uses for training with a warm-up. The code starts from a network trained on
    clean images: give one as `config.model.weights`. As in the code, an optimizer's momentum and weight decay still
    move conserved weights.
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
        """Refuse parts: the gradient of the full batch decides which weights are conserved."""
        raise InputError("microbatches: CURE conserves weights by the full batch's gradient; leave it at 1")

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> Revised:
        """A copy of the weights and statistics."""
        return Revised(*copied(variables))

    @property
    def forwards(self) -> tuple[str, ...]:
        """The inner method's forwards, then clean unless it is among them."""
        inner = super().forwards
        return inner if "clean" in inner else (*inner, "clean")

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft with the divergence from the clean prediction as loss; attach the average's outputs."""
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
        """The weights, with the smallest entries of their gradient set to 0."""
        return conserved(super().differentiated(params), self.share)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The weighted sum of the inner loss and the clean cross-entropy, plus the divergences from the average."""
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
        """Update the average with probability `rate`."""
        state, own = super().after_step(variables, objective_state, batch, aux, context), objective_state.own
        drawn = jax.random.uniform(named_key(context.key, "cure"), (), jnp.float32) < self.rate
        steps = context.step.astype(jnp.float32) + 1.0
        decay = jnp.where(drawn, jnp.minimum(1.0 - 1.0 / (steps + 1.0), self.decay), 1.0)
        params = interpolate(own.params, variables.params, decay)
        return state._replace(own=Revised(params, self.handed(batch).model_state))


@jax.custom_vjp
def conserved(params: PyTree, share: Array | float) -> PyTree:
    """The weights themselves; in each array's gradient, the `share` of entries with the smallest magnitude is set to 0.

    Entries below the quantile are set to 0; the quantile is that of `numpy.percentile`. The last layer's gradient is
    kept.

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
