"""Gradient alignment against catastrophic overfitting (Andriushchenko and Flammarion, 2020)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.forward import forward_keys
from piat_jax.core.norms import random_in_ball
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Terms, Wrapper, wrapper


@wrapper(
    "grad_align",
    title="GradAlign",
    summary="Aligns gradients at and near an image, which prevents catastrophic overfitting of one-step training.",
    paper="Andriushchenko and Flammarion (2020), arXiv:2007.02617",
)
class GradAlign(Wrapper):
    """GradAlign around any method: adds `weight (1 - cos(g(x_i), g(x_i + n_i)))`, g the gradient of CE by the image.

    n is uniform in the cube of radius eps. g(x) is a constant; the term is differentiated through g(x + n). Both are
    computed in training mode, without updating BatchNorm's running statistics.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method; PGD-AT in the paper, with one step of eps from the image itself (FGSM).
      weight: lambda, 0.2 for CIFAR-10 at 8/255; in the paper it grows with eps.
      eps: radius of n, unless an outer wrapper sets one per example.

    Source: Andriushchenko & Flammarion (2020), arXiv:2007.02617, and its code. The code excludes examples with a zero
    gradient from the mean; here their cosine is 0, as with `g / max(|g|, 1e-12)`.
    """

    weight: float = 0.2
    eps: float = 8 / 255

    attack_options: ClassVar[Mapping[str, Any]] = {"start": "none"}
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"pgd_at": {"attack_batch_norm": "train"}}

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Craft as the inner method does; draw the noise here, where the step's key is available."""
        keys = example_keys(named_key(context.key, "grad_align"), batch.indices)
        radius = context.attack.get("eps", self.eps)
        noise = random_in_ball(keys, radius, batch.images.shape[1:], "linf", batch.images.dtype)
        return self.hand(super().perturb(variables, objective_state, batch, context), noise)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms, plus one minus the cosine."""
        terms, clean = super().terms(outputs, objective_state, context), outputs.batch.clean
        params, model_state = outputs.variables
        keys = forward_keys(self.model, context.key, clean.indices, "grad_align")

        def gradient(params: PyTree, images: Array) -> Array:
            def total(images: Array) -> Array:
                logits, _ = self.model.apply(params, model_state, images, train=True, key=keys)
                return jnp.sum(losses.cross_entropy(logits, clean.target))

            return jax.grad(total)(images).reshape(images.shape[0], -1)

        at_image = gradient(jax.lax.stop_gradient(params), clean.images)
        near = gradient(params, clean.images + self.handed(outputs.batch))
        apart = 1.0 - jnp.sum(_unit(jax.lax.stop_gradient(at_image)) * _unit(near), axis=-1)
        metrics = {**terms.metrics, "gradients_apart": jnp.mean(apart)}
        return terms._replace(other=terms.other + self.weight * apart, metrics=metrics)


def _unit(rows: Array) -> Array:
    # Rescale first, so that tiny gradients of a confident network keep their direction. The constant is inside the
    # root so that the derivative at 0 is finite.
    rows = rows / jnp.maximum(jnp.max(jnp.abs(jax.lax.stop_gradient(rows)), axis=-1, keepdims=True), 1e-30)
    return rows * jax.lax.rsqrt(jnp.sum(rows * rows, axis=-1, keepdims=True) + 1e-12)
