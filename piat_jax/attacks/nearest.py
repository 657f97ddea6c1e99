"""Shared code of the minimum-norm attacks, which search for the nearest misclassified image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks.ascent import select
from piat_jax.core.checks import check_array, check_count, check_images, check_key
from piat_jax.core.network_checks import check_network, checked_logits
from piat_jax.core.norms import finite_entries
from piat_jax.core.norms import norm as length
from piat_jax.core.types import Array, LogitsFn, LossFn
from piat_jax.programs.frozen import frozen

Count = Array | int


class Nearest(NamedTuple):
    """The nearest misclassified images that an attack has found."""

    images: Array  # [B, H, W, C] float32; the clean image if none was found
    distances: Array  # [B] float32, in the attack's norm; inf if none was found
    queries: Array  # [B] int32, forwards spent on each example


class Search:
    """A minimum-norm attack's examples and network, and its search for the nearest misclassified point, in float32.

    A misclassified clean image is its own nearest point, at distance 0. Logits that are not finite never count as
    misclassified.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        images: Array,
        labels: Array,
        *,
        key: Array,
        active: Array | None,
        norm: str,
        steps: Count,
        loss: LossFn,
    ):
        check_network(logits_fn)
        check_images("images", images)
        check_array("labels", labels)
        check_key(key)
        check_count("steps", steps, 1)
        self.images = jax.lax.stop_gradient(images.astype(jnp.float32))
        self.labels, self.norm, self.steps, self.loss = labels, norm, steps, loss
        self.network = frozen(logits_fn, self.images)
        self.active = jnp.full(labels.shape, True) if active is None else active

    def first(self) -> Nearest:
        """The state before any point was evaluated."""
        none = jnp.full(self.labels.shape, jnp.inf, jnp.float32)
        return Nearest(self.images, none, jnp.zeros(self.labels.shape, jnp.int32))

    def gradient(self, x: Array) -> tuple[Array, Array, Array]:
        """The gradient of the loss at a point, the loss `[B]`, and whether the point is misclassified, `[B]`."""

        def total(x: Array) -> tuple[Array, tuple[Array, Array]]:
            value, wrong = self._evaluate(x)
            return jnp.sum(value), (value, wrong)

        gradient, (value, wrong) = jax.grad(total, has_aux=True)(x)
        return finite_entries(gradient), value, wrong

    def nearer(self, found: Nearest, x: Array, wrong: Array) -> Nearest:
        """Update the nearest points with an evaluated point."""
        away = length(x - self.images, self.norm)
        better = self.active & wrong & (away < found.distances)
        return Nearest(
            select(better, x, found.images),
            jnp.where(better, away, found.distances),
            found.queries + self.active.astype(jnp.int32),
        )

    def last(self, found: Nearest, x: Array) -> Nearest:
        """Update the nearest points with the last point, which needs no gradient."""
        return jax.lax.stop_gradient(self.nearer(found, x, self._evaluate(x)[1]))

    def farthest(self) -> Array:
        """The distance to the farthest corner of the box, `[B]`, an upper bound on useful radii."""
        return length(jnp.maximum(self.images, 1.0 - self.images), self.norm)

    def anneal(self, index: Array, high: Any, low: Any) -> Array:
        """`low + (high - low) (1 + cos(pi index / steps)) / 2`."""
        return low + (high - low) * (1.0 + jnp.cos(jnp.pi * index / self.steps)) / 2.0

    def _evaluate(self, x: Array) -> tuple[Array, Array]:
        logits = checked_logits(self.network, x).astype(jnp.float32)
        return self.loss(logits, self.labels), losses.misclassified(logits, self.labels)
