"""The engine of the attacks in pgd.py: gradient ascent inside ball and box, and comparison of points."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.bound import Bound
from piat_jax.core.checks import InputError, check_labels, described
from piat_jax.core.labels import hard
from piat_jax.core.network_checks import checked_logits
from piat_jax.core.norms import (
    L2_RULES,
    Box,
    L2Rule,
    Radius,
    ascent_direction,
    cap_radius,
    per_example,
    project,
    project_l1,
    projection_radius,
    random_in_ball,
    sparse_direction,
)
from piat_jax.core.rng import flat_draw, named_key
from piat_jax.core.types import Array, LogitsFn, LossFn
from piat_jax.programs.frozen import frozen
from piat_jax.programs.loops import fori_loop

Best = tuple[Array, Array, Array]  # images, whether they succeed, loss
Vary = Callable[[LogitsFn, Array, Array, Array | int], tuple[LogitsFn, Array]]
"""`(logits_fn, images, x, index) -> (logits_fn, x)`: the model that a step sees, and the point it starts from."""


class Ascent:
    """The problem that one attack solves; the options after `box` are those of `pgd`.

    It computes in float32, or in the images' dtype if that has more bits. The network sees points as they will be
    returned: rounded to the images' dtype.
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
        sparsity: Array | float = 0.01,
    ):
        check_loss(loss)
        shape = images.shape[1:]
        self.dtype, self.images = images.dtype, images.astype(jnp.promote_types(images.dtype, jnp.float32))
        self.logits_fn = logits_fn if vary else frozen(logits_fn, images)
        self.target, self.labels, self.targets = labels, hard(labels), targets
        self.loss = loss if targets is None else towards(loss)
        self.norm, self.box, self.rule, self.sparsity = norm, box, rule, sparsity
        # A step longer than the box is wide goes no farther, and a ball that holds the whole box is no constraint.
        self.eps = projection_radius(eps, shape, norm, box)
        self.step_size = per_example(cap_radius(step_size, shape, norm, box), self.images)
        self.start_eps = cap_radius(eps if start_eps is None else start_eps, shape, norm, box)
        self.step_budget, self.noise, self.vary = step_budget, noise, vary
        self.noisy = not (isinstance(noise, (int, float)) and noise == 0)

    def into_box(self, x: Array) -> Array:
        """Clip to valid pixels."""
        return x if self.box is None else jnp.clip(x, *self.box)

    def into_ball(self, x: Array, eps: Radius) -> Array:
        """The nearest point in the ball of radius `eps`; under "l1", in the intersection of ball and box."""
        if self.norm == "l1":
            return self.images + project_l1(x - self.images, eps, self.images)
        return self.images + project(x - self.images, eps, self.norm)

    def inside(self, x: Array) -> Array:
        """Project onto ball, then box, unless the L2 rule reverses the order."""
        if self.norm == "l2" and self.rule.box_first:
            return self.into_ball(self.into_box(x), self.eps)
        return self.into_box(self.into_ball(x, self.eps))

    def result(self, x: Array) -> Array:
        """Points in the images' dtype, rounded towards the images, so that they stay inside ball and box."""
        return round_towards(x, self.images, self.dtype)

    def start(self, keys: Array, start: str) -> Array:
        """Each example's starting point."""
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
        """Each example's loss, and whether the attack succeeds; logits that are not finite do not count as success."""
        logits = checked_logits(self.logits_fn, x)
        if self.targets is None:
            return self.loss(logits, self.target), losses.misclassified(logits, self.labels)
        check_labels("targets", self.targets, logits)
        return self.loss(logits, self.targets), losses.correct(logits, self.targets)

    def gradient(self, x: Array) -> tuple[Array, Array, Array]:
        """The gradient of the loss, and the results of `evaluate`."""

        def total(x: Array) -> tuple[Array, tuple[Array, Array]]:
            value, success = self.evaluate(x)
            return jnp.sum(value), (value, success)

        gradient, (value, success) = jax.grad(total, has_aux=True)(self.result(x))
        return gradient.astype(x.dtype), value, success

    def move(self, x: Array, uphill: Array, noise: Array | None = None) -> Array:
        """One step along `uphill`, plus `noise`, projected."""
        x = x + self.step_size * self.direction(x, uphill)
        return self.inside(x if noise is None else x + noise)

    def direction(self, x: Array, uphill: Array) -> Array:
        """The unit step along `uphill` from x."""
        if self.norm == "l1":
            return sparse_direction(uphill, x, self.sparsity)
        return ascent_direction(uphill, self.norm, self.rule)

    def step(self, index: Array | int, x: Array, gradient: Array, keys: Array | None) -> Array:
        """Take step `index`, 0-based, for examples whose budget includes it; the others stay."""
        moved = self.move(x, gradient, self._noise(index, keys) if self.noisy else None)
        return moved if self.step_budget is None else select(self.has_step(index), moved, x)

    def varied(self, index: Array | int, x: Array) -> tuple["Ascent", Array]:
        """The problem as step `index` sees it, and the points that the step starts from."""
        if self.vary is None:
            return self, x
        ascent = copy.copy(self)
        ascent.logits_fn, start = self.vary(self.logits_fn, self.images, x, index)
        return ascent, select(self.has_step(index), start, x)

    def has_step(self, index: Array | int) -> Array:
        """Whether each example takes step `index`, `[B]`."""
        budget = jnp.iinfo(jnp.int32).max if self.step_budget is None else self.step_budget
        return jnp.broadcast_to(index < jnp.asarray(budget), self.labels.shape)

    def _noise(self, index: Array | int, keys: Array | None) -> Array:
        def draw(key: Any) -> Array:
            key = jax.random.fold_in(named_key(key, "noise"), index)
            return flat_draw(jax.random.normal, key, self.images.shape[1:], self.images.dtype)

        return per_example(self.noise, self.images) * jax.vmap(draw)(keys)

    def run(self, x: Array, steps: int, keys: Array | None = None) -> Array:
        """The last iterate; `keys`, one per example, are only needed for noise."""

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

        # The start is not projected yet and may lie outside the ball, so it does not compete.
        ascent, x = self.varied(0, x)
        x = self.step(0, x, ascent.gradient(x)[0], keys)
        x, best = fori_loop(0, steps - 1, step, (x, best))
        return self.better(best, x)

    def run_watched(self, x: Array, steps: int, keys: Array, patience: Array | int) -> tuple[Array, Array]:
        """The iterate at which each example's patience ran out, or the last; and the number without success, `[B]`."""

        def step(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, left, count = carry
            ascent, start = self.varied(index, x)
            x = start if self.vary is None else select(left >= 0, start, x)
            gradient, _, success = ascent.gradient(x)
            left = left - success.astype(jnp.int32)  # at -1 the example is done and never moves again
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
    """Per example: success comes first, then the higher loss."""
    take = (new[1] & ~old[1]) | ((new[1] == old[1]) & (new[2] > old[2]))
    return select(take, new[0], old[0]), old[1] | new[1], jnp.where(take, new[2], old[2])


def check_loss(loss: object) -> None:
    """Raise InputError unless `loss` can be called.

    >>> check_loss("margin")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: loss is 'margin'; give a function (logits, labels) -> [B]: piat_jax.losses.margin
    """
    if not callable(loss):
        name = loss if isinstance(loss, str) and hasattr(losses, loss) else "cross_entropy"
        raise InputError(f"loss is {described(loss)}; give a function (logits, labels) -> [B]: piat_jax.losses.{name}")


TOWARDS = {losses.margin: losses.margin_to_target}
"""Losses that are clipped on one side, and their form for a target."""


def towards(loss: LossFn) -> LossFn:
    """The loss that a targeted attack maximises: it rises as the network moves towards the targets.

    It is `-loss(logits, targets)`. The margin loss is flat beyond kappa, on the side that a targeted attack needs, so
    it has its own form, `losses.margin_to_target`.
    """
    if isinstance(loss, Bound):
        return dataclasses.replace(loss, fn=TOWARDS[loss.fn]) if loss.fn in TOWARDS else _negative(loss)
    return TOWARDS.get(loss, _negative(loss))  # type: ignore[arg-type]


def _negative(loss: LossFn) -> LossFn:
    return lambda logits, targets: -loss(logits, targets)


def round_towards(x: Array, images: Array, dtype: Any) -> Array:
    """`x` in a dtype, each pixel rounded towards the clean pixel, so that the perturbation never grows.

    >>> x, clean = jnp.array([0.5338]), jnp.array([0.5])
    >>> float(x.astype(jnp.bfloat16)[0]), float(round_towards(x, clean, jnp.bfloat16)[0])
    (0.53515625, 0.53125)
    """
    if x.dtype == dtype:
        return x
    near, bits = x.astype(dtype), jnp.finfo(dtype)
    # XLA for GPUs takes `near.astype(x.dtype)` for x itself.
    rounded = jax.lax.reduce_precision(x, exponent_bits=bits.nexp, mantissa_bits=bits.nmant)
    farther = jnp.abs(rounded - images) > jnp.abs(x - images)
    return jnp.where(farther, jnp.nextafter(near, images.astype(dtype)), near)


def select(which: Array, x: Array, other: Array) -> Array:
    """The examples of `x[B, ...]` where `which[B]`, else those of `other`."""
    return jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x, other)
