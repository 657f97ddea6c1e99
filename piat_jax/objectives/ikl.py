"""Improved Kullback-Leibler divergence, IKL (Cui et al., 2024)."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import check_range
from piat_jax.core.forward import num_classes
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import AttackedObjective, Outputs, Terms, method
from piat_jax.objectives.wrapper_checks import check_attack_takes


class ClassMeans(NamedTuple):
    """The mean prediction of each class, `[K, K]` each."""

    mean: Array  # of the previous epoch, row k for class k; uniform at first
    total: Array  # sums over this epoch


@method(
    "ikl",
    title="IKL",
    summary="TRADES with its divergence split in two: logits weighted by class means, and a soft cross-entropy.",
    paper="Cui et al. (2024), arXiv:2305.13948",
)
class IKL(AttackedObjective):
    """IKL: minimise `mean_i [ CE(z_i, y_i) + beta MSE_i + alpha SCE_i ]`; the attack maximises SCE.

        SCE_i = -sum_c sg[p_ic] log p'_ic
        MSE_i = sum_jk s_j s_k (d_j - d_k)^2 / 4,  d = z_i - z'_i

    s is the mean of `softmax(z / temperature)` over the images of i's class in the previous epoch, uniform in the first
    epoch. sg stops the gradient. MSE_i is half the variance of d under s, and gradients flow through z and z'. With
    s = p_i it would have the divergence's gradients with respect to both, which is the paper's starting point.

    Train-mode forwards: x', x.

    Attributes:
      alpha: of the soft cross-entropy, 4.
      beta: of the squared distance, 20.
      temperature: of the class means, 4.
      attack: must not start at the clean images; the code uses `bind(pgd, start="normal")`, the configs' default.
      model, attack_batch_norm, label_smoothing, smoothing_over: as in `AttackedObjective`.

    Source: Cui et al., "Decoupled Kullback-Leibler divergence loss" (NeurIPS 2024), arXiv:2305.13948, and its code of
    version 1 (`DKLv1`), with the weights of its scripts. The code also grows the radius linearly over the epochs to
    `eps`, in 5 steps, averages the weights, perturbs them (`awp`), and uses a second, augmented view; none of this is
    done here. Here a class that does not occur in an epoch keeps its mean.
    """

    alpha: float = 4.0
    beta: float = 20.0
    temperature: float = 4.0

    attack_options: ClassVar[dict[str, Any]] = {"start": "normal"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("temperature", self.temperature, 0, float("inf"), open_low=True)
        check_attack_takes(self, "loss")

    @property
    def forwards(self) -> tuple[str, ...]:
        """Adversarial, then clean."""
        return ("adversarial", "clean")

    def init(self, variables: Variables, images: Array, *, key: Array) -> ClassMeans:
        """Uniform means and empty sums."""
        classes = num_classes(self.model, variables, images)
        return ClassMeans(
            jnp.full((classes, classes), 1.0 / classes, jnp.float32), jnp.zeros((classes, classes), jnp.float32)
        )

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Maximise the soft cross-entropy with the clean prediction, computed once."""
        clean = jax.nn.softmax(self.logits_fn(variables)(batch.images).astype(jnp.float32))
        return self.craft(variables, batch, context, loss=lambda logits, _: losses.cross_entropy(logits, clean))

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The two parts of the divergence, plus the clean cross-entropy."""
        clean, adversarial = outputs.logits["clean"], outputs.logits["adversarial"]
        soft = losses.cross_entropy(adversarial, jax.lax.stop_gradient(jax.nn.softmax(clean.astype(jnp.float32))))
        squared = half_variance(clean, adversarial, objective_state.mean[outputs.batch.clean.labels])
        metrics = {"regularizer": jnp.mean(squared), "soft_cross_entropy": jnp.mean(soft)}
        divergence = self.beta * squared + self.alpha * soft
        return Terms(divergence, losses.cross_entropy(clean, outputs.target), metrics)

    def after_step(
        self, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, aux: Aux, context: Context
    ) -> ClassMeans:
        """Add the batch's predictions to the sums of their classes."""
        p = jax.nn.softmax(aux.logits["clean"].astype(jnp.float32) / self.temperature)
        return objective_state._replace(total=objective_state.total.at[batch.clean.labels].add(p))

    def after_epoch(self, objective_state: PyTree, context: Context) -> ClassMeans:
        """Compute means from the sums and reset the sums."""
        mean, total = objective_state
        counts = jnp.sum(total, axis=-1, keepdims=True)
        mean = jnp.where(counts > 0, total / jnp.where(counts > 0, counts, 1.0), mean)
        return ClassMeans(mean, jnp.zeros_like(total))


def half_variance(logits: Array, other_logits: Array, weights: Array) -> Array:
    """`sum_jk s_j s_k (d_j - d_k)^2 / 4` with `d = z - z'` and weights s that add up to 1: half of d's variance, `[B]`.

    >>> half_variance(jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 1.0]]), jnp.array([[0.5, 0.5]])).tolist()
    [0.5]
    """
    difference = logits.astype(jnp.float32) - other_logits.astype(jnp.float32)
    centred = difference - jnp.sum(weights * difference, axis=-1, keepdims=True)
    return jnp.sum(weights * centred**2, axis=-1) / 2
