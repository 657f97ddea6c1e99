"""The engine of the attacks in pgd.py: steps uphill inside ball and box, and which of two points is better."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.norms import ascent_direction, per_example, project, random_in_ball
from piat_jax.core.rng import flat_draw, named_key
from piat_jax.core.types import Array, LogitsFn, LossFn

Radius = Array | float
Box = tuple[float, float] | None
Best = tuple[Array, Array, Array]  # images, whether misclassified, loss
Vary = Callable[[LogitsFn, Array, Array, Array | int], tuple[LogitsFn, Array]]
"""`(logits_fn, images, x, index) -> (logits_fn, x)`: what a step sees of the model, and the point it starts from."""


class Ascent:
    """One attack's problem; the options after `box` are those of `pgd`."""

    def __init__(
        self,
        logits_fn: LogitsFn,
        images: Array,
        labels: Array,
        eps: Radius,
        step_size: Radius,
        norm: str,
        loss: LossFn,
        box: Box,
        *,
        start_eps: Radius | None = None,
        step_budget: Array | int | None = None,
        noise: Array | float = 0.0,
        vary: Vary | None = None,
    ):
        self.logits_fn, self.images, self.labels, self.loss = logits_fn, images, labels, loss
        self.eps, self.step_size, self.norm, self.box = eps, per_example(step_size, images), norm, box
        self.start_eps = eps if start_eps is None else start_eps
        self.step_budget, self.noise, self.vary = step_budget, noise, vary
        self.noisy = not (isinstance(noise, (int, float)) and noise == 0)

    def into_box(self, x: Array) -> Array:
        """Clipped to valid pixels."""
        return x if self.box is None else jnp.clip(x, *self.box)

    def inside(self, x: Array) -> Array:
        """Projected onto the ball first, the box last."""
        return self.into_box(self.images + project(x - self.images, self.eps, self.norm))

    def start(self, keys: Array, start: str) -> Array:
        """Where each example begins."""
        shape, dtype = self.images.shape[1:], self.images.dtype
        if start == "uniform":
            return self.into_box(self.images + random_in_ball(keys, self.start_eps, shape, self.norm, dtype))
        if start == "normal":
            return self.images + 0.001 * jax.vmap(lambda key: flat_draw(jax.random.normal, key, shape, dtype))(keys)
        return self.images

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        """Loss, and whether misclassified, of each example."""
        logits = self.logits_fn(x)
        return self.loss(logits, self.labels), ~losses.correct(logits, self.labels)

    def gradient(self, x: Array) -> tuple[Array, Array, Array]:
        """The gradient of the loss, and what `evaluate` returns."""

        def total(x: Array) -> tuple[Array, tuple[Array, Array]]:
            value, wrong = self.evaluate(x)
            return jnp.sum(value), (value, wrong)

        gradient, (value, wrong) = jax.grad(total, has_aux=True)(x)
        return gradient, value, wrong

    def move(self, x: Array, uphill: Array, noise: Array | None = None) -> Array:
        """One step along `uphill`, plus `noise`, projected."""
        x = x + self.step_size * ascent_direction(uphill, self.norm)
        return self.inside(x if noise is None else x + noise)

    def step(self, index: Array | int, x: Array, gradient: Array, keys: Array | None) -> Array:
        """Step number `index`, 0-based, of the examples whose budget holds it; the others stay."""
        moved = self.move(x, gradient, self._noise(index, keys) if self.noisy else None)
        return moved if self.step_budget is None else select(self.has_step(index), moved, x)

    def varied(self, index: Array | int, x: Array) -> tuple["Ascent", Array]:
        """The problem as step number `index` sees it, and where those examples start from whose budget holds it."""
        if self.vary is None:
            return self, x
        ascent = copy.copy(self)
        ascent.logits_fn, start = self.vary(self.logits_fn, self.images, x, index)
        return ascent, select(self.has_step(index), start, x)

    def has_step(self, index: Array | int) -> Array:
        """`[B]` whether each example takes step number `index`."""
        budget = jnp.iinfo(jnp.int32).max if self.step_budget is None else self.step_budget
        return jnp.broadcast_to(index < jnp.asarray(budget), self.labels.shape)

    def _noise(self, index: Array | int, keys: Array | None) -> Array:
        def draw(key: Any) -> Array:
            key = jax.random.fold_in(named_key(key, "noise"), index)
            return flat_draw(jax.random.normal, key, self.images.shape[1:], self.images.dtype)

        return per_example(self.noise, self.images) * jax.vmap(draw)(keys)

    def run(self, x: Array, steps: int, keys: Array | None = None) -> Array:
        """The last iterate; only noise needs `keys`, one an example."""

        def step(index: Array, x: Array) -> Array:
            ascent, x = self.varied(index, x)
            return self.step(index, x, ascent.gradient(x)[0], keys)

        return jax.lax.fori_loop(0, steps, step, x)

    def run_keeping_best(self, x: Array, steps: int, keys: Array, best: Best) -> Best:
        """The best of `best` and all iterates after the start."""

        def step(index: int, carry: tuple[Array, Best]) -> tuple[Array, Best]:
            x, best = carry
            ascent, x = self.varied(index + 1, x)
            gradient, value, wrong = ascent.gradient(x)
            return self.step(index + 1, x, gradient, keys), better(best, (x, wrong, value))

        # A start that no step has projected yet may lie outside the ball, so it does not compete.
        ascent, x = self.varied(0, x)
        x = self.step(0, x, ascent.gradient(x)[0], keys)
        x, best = jax.lax.fori_loop(0, steps - 1, step, (x, best))
        return self.better(best, x)

    def run_watched(self, x: Array, steps: int, keys: Array, patience: Array | int) -> tuple[Array, Array]:
        """The iterate at which each example ran out of patience, or the last; and how many were correct, `[B]`."""

        def step(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, left, count = carry
            ascent, start = self.varied(index, x)
            x = start if self.vary is None else select(left >= 0, start, x)
            gradient, _, wrong = ascent.gradient(x)
            left = left - wrong  # at -1 the example is emitted and never moves again
            moves = (left >= 0) & self.has_step(index)
            x = select(moves, self.step(index, x, gradient, keys), x)
            return x, left, count + (moves & ~wrong)

        patience = jnp.broadcast_to(jnp.asarray(patience, jnp.int32), self.labels.shape)
        first = (x, patience, jnp.zeros(self.labels.shape, jnp.int32))
        x, _, count = jax.lax.fori_loop(0, steps, step, first)
        return x, count

    def better(self, best: Best, x: Array) -> Best:
        """The better of `best` and the points `x`."""
        value, wrong = self.evaluate(x)
        return better(best, (x, wrong, value))


def better(old: Best, new: Best) -> Best:
    """Per example: misclassified before correct, then by higher loss."""
    take = (new[1] & ~old[1]) | ((new[1] == old[1]) & (new[2] > old[2]))
    return select(take, new[0], old[0]), old[1] | new[1], jnp.where(take, new[2], old[2])


def select(which: Array, x: Array, other: Array) -> Array:
    """The examples `which[B]` of `x[B, ...]`, the rest from `other`."""
    return jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x, other)
