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
    summary="Gradients at and near an image must point alike, which keeps one-step training from collapsing.",
    paper="Andriushchenko and Flammarion (2020), arXiv:2007.02617",
)
class GradAlign(Wrapper):
    """GradAlign around any method: add `weight (1 - cos(g(x_i), g(x_i + n_i)))`, g the gradient of CE by the image.

    n is uniform in the cube of radius eps. g(x) is a constant; the term is differentiated through g(x + n). Both are
    taken in training mode, and what this does to BatchNorm's statistics is discarded.

    Train-mode forwards: those inside.

    Attributes:
      inner: the method; PGD-AT in the paper, with one step of eps from the image itself (FGSM).
      weight: lambda, 0.2 for CIFAR-10 at 8/255; the paper has it grow with eps.
      eps: radius of n; a radius that a wrapper outside sets per example takes its place.

    Source: Andriushchenko & Flammarion (2020), arXiv:2007.02617, and its code. The code leaves examples without a
    gradient out of the mean; here they count with cosine 0, as `g / max(|g|, 1e-12)` has it.
    """

    weight: float = 0.2
    eps: float = 8 / 255

    attack_options: ClassVar[Mapping[str, Any]] = {"start": "none"}
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"pgd_at": {"attack_batch_norm": "train"}}

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """As inside; the noise is drawn here, where the step's key is."""
        keys = example_keys(named_key(context.key, "grad_align"), batch.indices)
        radius = context.attack.get("eps", self.eps)
        noise = random_in_ball(keys, radius, batch.images.shape[1:], "linf", batch.images.dtype)
        return self.hand(super().perturb(variables, objective_state, batch, context), noise)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """As inside, and one minus the cosine."""
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
    # Tiny gradients of a sure network keep their direction; inside the root, so that the derivative at 0 is finite.
    rows = rows / jnp.maximum(jnp.max(jnp.abs(jax.lax.stop_gradient(rows)), axis=-1, keepdims=True), 1e-30)
    return rows * jax.lax.rsqrt(jnp.sum(rows * rows, axis=-1, keepdims=True) + 1e-12)
