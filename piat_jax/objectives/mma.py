"""Max-margin adversarial training (Ding et al., 2020)."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import check_at_least, check_count, check_range
from piat_jax.core.labels import hard, of_label
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, LogitsFn, PyTree, Variables
from piat_jax.objectives.base import Outputs, Resources, Terms, Wrapper, WrapperState, static, wrapper
from piat_jax.objectives.memory import of_examples, remember
from piat_jax.objectives.wrapper_checks import attack_options, check_attack_takes, check_only_one_chooses, innermost
from piat_jax.programs.loops import fori_loop


class Margins(NamedTuple):
    """Each training example's distance to the decision boundary when it was last seen."""

    eps: Array  # [N], on pixels in [0, 1]; 0 if the example was misclassified or not seen yet


class Searched(NamedTuple):
    """The search's results for a batch, `[B]` each."""

    eps: Array  # distance to the decision boundary, 0 where the clean image is misclassified
    within: Array  # bool, whether the adversarial part counts


@wrapper(
    "mma",
    title="MMA",
    summary="Trains each example at its decision boundary, unless the boundary is too far away.",
    paper="Ding et al. (2020), arXiv:1812.02637",
)
class MMA(Wrapper):
    """MMA around any method: perturbs each example up to its decision boundary, `x'_i = x_i + eps_i u_i`.

    The method's attack finds the direction u_i by maximising the soft logit margin `log sum_{k != y} exp z_k - z_y`.
    Its radius is the distance at which the example crossed the boundary when it was last seen, at least `least eps`;
    its step size is `reach` times the radius, divided by the number of steps. Along u_i, `searches` bisections find
    the eps_i, at most 1.05 `hinge eps`, where the soft margin changes sign. Misclassified examples are not perturbed.
    With A the method's adversarial part, the loss is the mean of

        clean_weight CE(z_i, y_i) + (1 - clean_weight) A_i [ eps_i < hinge eps or x_i is misclassified ]

    Train-mode forwards: x, then those of the inner method.

    Attributes:
      inner: the method, PGD-AT in the paper; its attack must take `eps`, `step_size`, `start_eps` and `loss`, as `pgd`
        does. Its label smoothing applies to both cross-entropies.
      examples: N, the number of training examples; a larger index gives a loss of NaN. Configs set it automatically.
      eps: the unit of radii, the attack's eps, unless an outer wrapper sets a radius.
      hinge: how far to push an example's boundary, in units of eps: 4, which is 32/255 (MMA-32); 12/8 and 20/8 are
        MMA-12 and MMA-20. In L2 the paper uses 1, 2 and 3 with an eps of 1.
      least: the smallest attack radius, in units of eps: 0.16, which is 0.005 at eps = 8/255; 0.5 in L2.
      reach: 2.5.
      searches: bisections, 10.
      clean_weight: 1/3; 0 is OMMA.

    Source: Ding et al. (2020), arXiv:1812.02637, and its code. The code decides whether x is correct from its forward
    in training mode, and bisects in training mode, with 11 forwards that update the running statistics; here crafting
    uses BatchNorm as `attack_batch_norm` says. The code's x' may leave the box; here it is clipped.
    """

    examples: int = static()
    eps: float = 8 / 255
    hinge: float = 4.0
    least: float = 0.16
    reach: float = 2.5
    searches: int = static(default=10)
    clean_weight: float = 1 / 3

    rescales: ClassVar[bool] = True
    chooses_attack: ClassVar[bool] = True

    @classmethod
    def from_fields(cls, inner: Any, fields: Mapping[str, Any], resources: Resources) -> Self:
        """As for any wrapper; the training examples are counted."""
        return cls(inner, **{**fields, "examples": resources.examples})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("examples", self.examples, 1)
        check_count("searches", self.searches, 1)
        check_range("clean_weight", self.clean_weight, 0, 1)
        check_at_least("least", self.least, 1e-6)
        check_attack_takes(self, "eps", "step_size", "start_eps", "loss")
        check_only_one_chooses(self)

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> Margins:
        """Zero distances: no example has been seen yet."""
        return Margins(jnp.zeros(self.examples * self.views, jnp.float32))

    @property
    def forwards(self) -> tuple[str, ...]:
        """Clean, then the inner method's forwards."""
        inner = super().forwards
        return inner if "clean" in inner else ("clean", *inner)

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Perturb each example up to its boundary."""
        unit = context.attack.get("eps", self.eps)
        before = of_examples(objective_state.own.eps, batch.indices)
        radius = jnp.maximum(before, self.least * unit)
        steps = context.attack.get("steps", attack_options(self.inner).get("steps", 10))
        options = {"eps": radius, "step_size": self.reach * radius / steps, "loss": soft_margin, "start_eps": radius}
        adversarial = super().perturb(variables, objective_state, batch, context.with_attack(**options))
        logits_fn, clean = innermost(self).logits_fn(variables), adversarial.clean
        correct = soft_margin(logits_fn(clean.images), clean.labels) < 0
        direction = (adversarial.images - clean.images) / per_image(radius, clean.images)
        farthest = jnp.broadcast_to(1.05 * self.hinge * unit, radius.shape)
        eps = boundary(logits_fn, clean, direction, jnp.minimum(radius, farthest), farthest, self.searches)
        eps = jnp.where(correct, eps, 0.0)
        images = jax.lax.stop_gradient(along(clean.images, direction, eps))
        metrics = {**adversarial.metrics, "margin": jnp.mean(eps)}
        searched = jax.lax.stop_gradient(Searched(eps, ~correct | (eps < self.hinge * unit)))
        return self.hand(adversarial._replace(images=images, metrics=metrics), searched)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The clean cross-entropy, plus the adversarial part where the boundary is near, and the other terms."""
        terms = super().terms(outputs, objective_state, context)
        within = self.handed(outputs.batch).within
        share, clean = 1.0 - self.clean_weight, losses.cross_entropy(outputs.logits["clean"], outputs.target)
        adversarial = share * jnp.where(within, terms.adversarial, 0.0)
        return terms._replace(adversarial=adversarial, other=share * terms.other + self.clean_weight * clean)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> WrapperState:
        """Store the distances of the batch's examples."""
        state = super().after_step(variables, objective_state, batch, aux, context)
        eps = remember(state.own.eps, batch.clean.indices, self.handed(batch).eps)
        return state._replace(own=Margins(eps))


def soft_margin(logits: Array, labels: Array) -> Array:
    """`log sum_{k != y} exp z_k - z_y`, `[B]`: below 0 only where the label's logit is the highest.

    For labels given as probabilities `[B, K]`, y is the most probable class.

    >>> soft_margin(jnp.array([[2.0, 0.0, 0.0]]), jnp.array([0])).round(4).tolist()
    [-1.3069000244140625]
    """
    logits, labels = logits.astype(jnp.float32), hard(labels)
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return others - of_label(logits, labels)


def boundary(
    logits_fn: LogitsFn, batch: Batch, direction: Array, begin: Array, farthest: Array, searches: int
) -> Array:
    """The distance along `direction` at which each example's soft margin changes sign, by bisection: `[B]`.

    The bisection of [0, farthest] evaluates `begin` first; without a change of sign it ends near `farthest`.
    """

    def halve(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, at = carry
        inside = soft_margin(logits_fn(along(batch.images, direction, at)), batch.labels) < 0
        low, high = jnp.where(inside, at, low), jnp.where(inside, high, at)
        return low, high, (low + high) / 2

    return fori_loop(0, searches, halve, (jnp.zeros_like(begin), farthest, begin))[2]


def along(images: Array, direction: Array, eps: Array) -> Array:
    """The images moved by `eps` along the direction and clipped to the box."""
    return jnp.clip(images + per_image(eps, images) * direction, 0.0, 1.0)


def per_image(values: Array, images: Array) -> Array:
    """`[B]` as `[B, 1, 1, 1]`."""
    return values.reshape(-1, *(1,) * (images.ndim - 1))
