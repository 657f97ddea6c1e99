"""Squeeze training (Li et al., 2023)."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import InputError
from piat_jax.core.forward import forward_keys
from piat_jax.core.labels import of_label
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, LogitsFn, PyTree, Variables
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method
from piat_jax.objectives.wrapper_checks import check_attack_takes

COLLABORATIVE = "STAT"
"""The batch's key for the collaborative images."""


@method(
    "stat",
    title="ST",
    summary="Squeeze training: pulls together the two most different predictions in the ball.",
    paper="Li et al. (2023), arXiv:2205.11156",
)
class STAT(AttackedObjective):
    """ST: minimise `mean_i [ CE(z_i, y_i) + beta S(u_i, l_i) ]`, `S(u, l) = (KL(sg[l] || u) + KL(sg[u] || l)) / 2`.

    Among the predictions for the clean image x, the adversarial x' and the collaborative x", u is the one with the
    lowest probability of the label and l the one with the highest. sg stops the gradient. x' and x" are crafted
    together: each step sets x' to u's image and x" to l's image, whichever of x, x' and x" these are, and moves both up
    the gradient of S.

    Train-mode forwards: x, x'. x" is forwarded in training mode too, without updating running statistics.

    Attributes:
      beta: 6, TRADES' value; the paper's was not available.
      attack: must not start at the clean images, and must take `loss` and `vary`, as `pgd` does: the code's is
        `bind(pgd, start="normal")`, the configs' default.
      model, attack_batch_norm, label_smoothing, smoothing_over: as in `AttackedObjective`. The code attacks with batch
        statistics and does not keep them; this is "train".

    Source: Li et al. (2023), arXiv:2205.11156, and its code.
    """

    beta: float = 6.0

    attack_options: ClassVar[dict[str, Any]] = {"start": "normal"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attack_takes(self, "loss", "vary")

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft x" and x' as the two halves of one batch; each step reassigns them."""
        if context.counting is not None or "added_loss" in context.attack:
            raise InputError("STAT crafts two images of each example; leave out GAIRAT and TE")
        count, logits_fn = batch.labels.shape[0], self.logits_fn(variables)
        natural = logits_fn(batch.images)

        def squeezed(logits: Array, _: Array) -> Array:
            distance = squeeze(logits[count:], logits[:count])
            return jnp.concatenate([distance, distance]) / 2

        def arranged(logits_fn: LogitsFn, images: Array, x: Array, index: Array) -> tuple[LogitsFn, Array]:
            if "vary" in context.attack:
                logits_fn, x = context.attack["vary"](logits_fn, images, x, index)
            logits = logits_fn(x)
            lower, upper = extremes(natural, logits[:count], logits[count:], batch.target)
            points = batch.images, x[:count], x[count:]
            return logits_fn, jnp.concatenate([pick(lower, *points), pick(upper, *points)])

        doubled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), batch)
        # Each half draws its own random numbers.
        halves = jnp.repeat(jnp.arange(2, dtype=batch.indices.dtype), count)
        doubled = doubled._replace(indices=2 * doubled.indices + halves)
        of_each = {name: _doubled(value, count) for name, value in context.attack.items()}
        crafted = self.craft(variables, doubled, context._replace(attack=of_each), loss=squeezed, vary=arranged).images
        return AdversarialBatch(batch, crafted[count:], {COLLABORATIVE: crafted[:count]})

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """Beta times the distance between the two extremes, plus the clean cross-entropy."""
        clean, adversarial = outputs.logits["clean"], outputs.logits["adversarial"]
        images, indices = outputs.batch.extra[COLLABORATIVE], outputs.batch.clean.indices
        keys = forward_keys(self.model, context.key, indices, COLLABORATIVE)
        collaborative, _ = self.model.apply(*outputs.variables, images, train=True, key=keys)
        lower, upper = extremes(clean, collaborative, adversarial, outputs.batch.clean.target)
        points = clean, collaborative, adversarial
        distance = squeeze(pick(upper, *points), pick(lower, *points))
        cross_entropy = losses.cross_entropy(clean, outputs.target)
        return Terms(self.beta * distance, cross_entropy, {"regularizer": jnp.mean(distance)})


def extremes(clean: Array, collaborative: Array, adversarial: Array, labels: Array) -> tuple[Array, Array]:
    """The index, 0 to 2, of the logits with the label's highest probability, and with its lowest: `[B]` each."""
    logits = jnp.stack([clean, collaborative, adversarial]).astype(jnp.float32)
    of_labels = jax.vmap(lambda p: of_label(p, labels))(jax.nn.softmax(logits))
    return jnp.argmax(of_labels, axis=0), jnp.argmin(of_labels, axis=0)


def pick(which: Array, *choices: Array) -> Array:
    """For each row i, row i of `choices[which[i]]`.

    >>> pick(jnp.array([1, 0]), jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [4.0]])).tolist()
    [[3.0], [2.0]]
    """
    which = which.reshape(-1, *(1,) * (choices[0].ndim - 1))
    return jnp.select([which == number for number in range(len(choices))], choices)


def squeeze(upper: Array, lower: Array) -> Array:
    """`(KL(sg[l] || u) + KL(sg[u] || l)) / 2` of logits, `[B]`.

    >>> squeeze(jnp.array([[0.0, 1.0]]), jnp.array([[0.0, 1.0]])).tolist()
    [0.0]
    """
    constant = jax.lax.stop_gradient
    return (losses.kl_divergence(constant(lower), upper) + losses.kl_divergence(constant(upper), lower)) / 2


def _doubled(value: Any, count: int) -> Any:
    """An attack's option, repeated for both halves if it is per example."""
    per_example = getattr(value, "shape", None) == (count,)
    return jnp.concatenate([value, value]) if per_example else value
