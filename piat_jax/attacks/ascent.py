"""The engine of the attacks in pgd.py: steps uphill inside ball and box, and which of two points is better."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.bound import Bound
from piat_jax.core.checks import check_labels, checked_logits
from piat_jax.core.labels import hard
from piat_jax.core.norms import (
    L2_RULES,
    Box,
    L2Rule,
    Radius,
    ascent_direction,
    cap_radius,
    per_example,
    project,
    projection_radius,
    random_in_ball,
)
from piat_jax.core.rng import flat_draw, named_key
from piat_jax.core.types import Array, LogitsFn, LossFn
from piat_jax.programs.frozen import frozen
from piat_jax.programs.loops import fori_loop

Best = tuple[Array, Array, Array]  # images, whether they succeed, loss
Vary = Callable[[LogitsFn, Array, Array, Array | int], tuple[LogitsFn, Array]]
"""`(logits_fn, images, x, index) -> (logits_fn, x)`: what a step sees of the model, and the point it starts from."""


class Ascent:
    """One attack's problem; the options after `box` are those of `pgd`.

    It works in float32, or in the images' own dtype if that has more bits. The network sees points as they will be
    handed back: rounded to the dtype of the images.
    """

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
        targets: Array | None = None,
        start_eps: Radius | None = None,
        step_budget: Array | int | None = None,
        noise: Array | float = 0.0,
        vary: Vary | None = None,
        rule: L2Rule = L2_RULES["exact"],
    ):
        shape = images.shape[1:]
        self.dtype, self.images = images.dtype, images.astype(jnp.promote_types(images.dtype, jnp.float32))
        self.logits_fn = logits_fn if vary else frozen(logits_fn, images)
        self.target, self.labels, self.targets = labels, hard(labels), targets
        self.loss = loss if targets is None else towards(loss)
        self.norm, self.box, self.rule = norm, box, rule
        # A step longer than the box is wide leads as far; a radius that holds the whole box is no bound.
        self.eps = projection_radius(eps, shape, norm, box)
        self.step_size = per_example(cap_radius(step_size, shape, norm, box), self.images)
        self.start_eps = cap_radius(eps if start_eps is None else start_eps, shape, norm, box)
        self.step_budget, self.noise, self.vary = step_budget, noise, vary
        self.noisy = not (isinstance(noise, (int, float)) and noise == 0)

    def into_box(self, x: Array) -> Array:
        """Clipped to valid pixels."""
        return x if self.box is None else jnp.clip(x, *self.box)

    def into_ball(self, x: Array, eps: Radius) -> Array:
        """The nearest point of the ball of radius `eps`."""
        return self.images + project(x - self.images, eps, self.norm)

    def inside(self, x: Array) -> Array:
        """Projected onto ball and box, the box last unless the rule says otherwise."""
        if self.norm == "l2" and self.rule.box_first:
            return self.into_ball(self.into_box(x), self.eps)
        return self.into_box(self.into_ball(x, self.eps))

    def result(self, x: Array) -> Array:
        """Points in the dtype of the images, rounded towards these: inside ball and box they stay there."""
        return round_towards(x, self.images, self.dtype)

    def start(self, keys: Array, start: str) -> Array:
        """Where each example begins."""
        shape, dtype = self.images.shape[1:], self.images.dtype
        if start == "uniform" and self.norm == "l2" and self.rule.start_in_box:
            low, high = self.box or (0.0, 1.0)
            options = {"minval": low, "maxval": high}
            draw = jax.vmap(lambda key: flat_draw(jax.random.uniform, key, shape, dtype, **options))
            return self.into_ball(draw(keys), self.start_eps)
        if start == "uniform":
            return self.into_box(self.images + random_in_ball(keys, self.start_eps, shape, self.norm, dtype))
        if start == "normal":
            return self.images + 0.001 * jax.vmap(lambda key: flat_draw(jax.random.normal, key, shape, dtype))(keys)
        return self.images

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        """Loss, and whether the attack succeeds, of each example; logits that are not finite are no success."""
        logits = checked_logits(self.logits_fn, x)
        if self.targets is None:
            return self.loss(logits, self.target), losses.misclassified(logits, self.labels)
        check_labels("targets", self.targets, logits)
        return self.loss(logits, self.targets), losses.correct(logits, self.targets)

    def gradient(self, x: Array) -> tuple[Array, Array, Array]:
        """The gradient of the loss, and what `evaluate` returns."""

        def total(x: Array) -> tuple[Array, tuple[Array, Array]]:
            value, success = self.evaluate(x)
            return jnp.sum(value), (value, success)

        gradient, (value, success) = jax.grad(total, has_aux=True)(self.result(x))
        return gradient.astype(x.dtype), value, success

    def move(self, x: Array, uphill: Array, noise: Array | None = None) -> Array:
        """One step along `uphill`, plus `noise`, projected."""
        x = x + self.step_size * ascent_direction(uphill, self.norm, self.rule)
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

        return fori_loop(0, steps, step, x)

    def run_keeping_best(self, x: Array, steps: int, keys: Array, best: Best) -> Best:
        """The best of `best` and all iterates after the start."""

        def step(index: int, carry: tuple[Array, Best]) -> tuple[Array, Best]:
            x, best = carry
            ascent, x = self.varied(index + 1, x)
            gradient, value, success = ascent.gradient(x)
            return self.step(index + 1, x, gradient, keys), better(best, (x, success, value))

        # A start that no step has projected yet may lie outside the ball, so it does not compete.
        ascent, x = self.varied(0, x)
        x = self.step(0, x, ascent.gradient(x)[0], keys)
        x, best = fori_loop(0, steps - 1, step, (x, best))
        return self.better(best, x)

    def run_watched(self, x: Array, steps: int, keys: Array, patience: Array | int) -> tuple[Array, Array]:
        """The iterate at which each example ran out of patience, or the last; and how many were no success, `[B]`."""

        def step(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, left, count = carry
            ascent, start = self.varied(index, x)
            x = start if self.vary is None else select(left >= 0, start, x)
            gradient, _, success = ascent.gradient(x)
            left = left - success.astype(jnp.int32)  # at -1 the example is emitted and never moves again
            moves = (left >= 0) & self.has_step(index)
            x = select(moves, self.step(index, x, gradient, keys), x)
            return x, left, count + (moves & ~success).astype(jnp.int32)

        patience = jnp.broadcast_to(jnp.asarray(patience, jnp.int32), self.labels.shape)
        first = (x, patience, jnp.zeros(self.labels.shape, jnp.int32))
        x, _, count = fori_loop(0, steps, step, first)
        return x, count

    def better(self, best: Best, x: Array) -> Best:
        """The better of `best` and the points `x`."""
        value, success = self.evaluate(self.result(x))
        return better(best, (x, success, value))


def better(old: Best, new: Best) -> Best:
    """Per example: a success before none, then by higher loss."""
    take = (new[1] & ~old[1]) | ((new[1] == old[1]) & (new[2] > old[2]))
    return select(take, new[0], old[0]), old[1] | new[1], jnp.where(take, new[2], old[2])


TOWARDS = {losses.margin: losses.margin_to_target}
"""Losses that are cut off on one side, and their form for a target."""


def towards(loss: LossFn) -> LossFn:
    """The loss that a targeted attack maximises: called with targets, it rises as the network decides for them.

    That is `-loss(logits, targets)`. The margin loss is flat beyond kappa, on the side that would matter then, so it
    has a form of its own, `losses.margin_to_target`.
    """
    if isinstance(loss, Bound):
        return dataclasses.replace(loss, fn=TOWARDS[loss.fn]) if loss.fn in TOWARDS else _negative(loss)
    return TOWARDS.get(loss, _negative(loss))  # type: ignore[arg-type]


def _negative(loss: LossFn) -> LossFn:
    return lambda logits, targets: -loss(logits, targets)


def round_towards(x: Array, images: Array, dtype: Any) -> Array:
    """`x` in a dtype, each pixel rounded to the side of its clean one: no farther from it than it was.

    >>> x, clean = jnp.array([0.5338]), jnp.array([0.5])
    >>> float(x.astype(jnp.bfloat16)[0]), float(round_towards(x, clean, jnp.bfloat16)[0])
    (0.53515625, 0.53125)
    """
    if x.dtype == dtype:
        return x
    near = x.astype(dtype)
    farther = jnp.abs(near.astype(x.dtype) - images) > jnp.abs(x - images)
    return jnp.where(farther, jnp.nextafter(near, images.astype(dtype)), near)


def select(which: Array, x: Array, other: Array) -> Array:
    """The examples `which[B]` of `x[B, ...]`, the rest from `other`."""
    return jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x, other)
