"""The step rule of Auto-PGD in Linf and L2, and the schedule of a run."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.attacks.ascent import select
from piat_jax.core.norms import ascent_direction, cap_radius, divide, per_example, project, projection_radius
from piat_jax.core.norms import norm as length
from piat_jax.core.rng import flat_draw
from piat_jax.core.types import Array


class ScheduleEntry(NamedTuple):
    """The schedule at one evaluation of a run; as a table, one entry per evaluation."""

    first: Array  # whether a phase begins at this point
    last: Array  # whether a phase ends at this point
    window: Array  # at a checkpoint, iterations since the previous one; else 0
    factor: Array  # the phase's radius as a multiple of eps
    next_factor: Array  # the factor at the next point
    counts: Array  # whether a misclassified point counts, because its radius is eps


class HighestLoss(NamedTuple):
    """Each example's point of highest loss in a phase."""

    x: Array
    gradient: Array
    loss: Array


class Memory(NamedTuple):
    """Memory of the Linf and L2 steps, one value per example."""

    previous: Array  # [B, H, W, C], the previous point
    step: Array
    gains: Array  # evaluations since the last checkpoint whose loss exceeded the previous one
    last_loss: Array
    check_loss: Array  # the highest loss at the last checkpoint
    halved: Array  # whether the step was halved at the last checkpoint


class ApgdRule:
    """The step rule of APGD in Linf and L2."""

    def __init__(self, images: Array, eps: Array, norm: str, rho: Array | float):
        self.images, self.norm, self.rho = images, norm, rho
        self.eps = cap_radius(eps, images.shape[1:], norm)
        self.ball = projection_radius(eps, images.shape[1:], norm)
        self.wide = per_example(self.eps, images)
        self.low, self.high = jnp.maximum(images - self.wide, 0.0), jnp.minimum(images + self.wide, 1.0)

    def phases(self, steps: int) -> Sequence[tuple[float, int]]:
        """Multiples of eps and iterations of each phase: one phase."""
        return [(1.0, steps)]

    def windows(self, steps: int) -> Sequence[tuple[int, int]]:
        """Iterations done at each checkpoint, and the number since the previous checkpoint.

        >>> [done for done, _ in ApgdRule(jnp.zeros((1, 1, 1, 1)), jnp.ones(1), "linf", 0.75).windows(100)]
        [22, 41, 57, 70, 80, 87, 93, 99]
        """
        window, least, decrease = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
        done, windows = window, []
        while done <= steps:
            windows.append((done, window))
            window = max(window - decrease, least)
            done += window
        return windows

    def draw(self, keys: Array) -> Array:
        """A random perturbation of norm eps for each key."""
        options = {"minval": -1.0, "maxval": 1.0} if self.norm == "linf" else {}
        kind = jax.random.uniform if self.norm == "linf" else jax.random.normal
        shape = self.images.shape[1:]
        noise = jax.vmap(lambda key: flat_draw(kind, key, shape, jnp.float32, **options))(keys)
        return self.wide * divide(noise, length(noise, self.norm))

    def inside(self, x: Array, factor: Array | float = 1.0) -> Array:
        """Project onto the ball first, then the box."""
        del factor  # there is only one phase
        if self.norm == "linf":
            return jnp.clip(x, self.low, self.high)
        return jnp.clip(self.images + project(x - self.images, self.ball, "l2"), 0.0, 1.0)

    def memory(self) -> Memory:
        """Placeholders: the first row sets them."""
        zero = jnp.zeros_like(self.eps)
        return Memory(self.images, zero, zero.astype(jnp.int32), zero, zero, zero.astype(bool))

    def next(
        self, row: ScheduleEntry, x: Array, gradient: Array, loss: Array, best: HighestLoss, memory: Memory
    ) -> tuple[Array, Memory]:
        """The next point, and the new memory."""
        step = jnp.where(row.first, 2.0 * self.eps, memory.step)
        previous = jnp.where(row.first, x, memory.previous)
        gains = jnp.where(row.first, 0, memory.gains + (loss > memory.last_loss).astype(jnp.int32))
        check_loss = jnp.where(row.first, loss, memory.check_loss)

        checks = row.window > 0
        stands_still = ~(memory.halved | row.first) & (check_loss >= best.loss)
        stalls = (gains.astype(jnp.float32) <= self.rho * row.window) | stands_still
        halve = checks & stalls
        # The reference compares the first loss after the start with 0, and the start counts as a halving.
        x, gradient = select(halve, best.x, x), select(halve, best.gradient, gradient)
        memory = Memory(
            previous=x,
            step=jnp.where(halve, step / 2, step),
            gains=jnp.where(checks, 0, gains),
            last_loss=jnp.where(row.first, 0.0, loss),
            check_loss=jnp.where(checks, best.loss, check_loss),
            halved=jnp.where(checks, stalls, memory.halved | row.first),
        )
        ahead = self.inside(x + per_example(memory.step, x) * ascent_direction(gradient, self.norm))
        share = jnp.where(row.first, 1.0, 0.75)
        return self.inside(x + share * (ahead - x) + (1.0 - share) * (x - previous)), memory


def schedule(rule: Any, steps: int) -> ScheduleEntry:
    """The table for a run of `steps` iterations: each phase evaluates its start and the point after each iteration."""
    rows: list[list[float]] = []
    phases = rule.phases(steps)
    for number, (factor, iterations) in enumerate(phases):
        windows = dict(rule.windows(iterations))
        after = phases[min(number + 1, len(phases) - 1)][0]
        for done in range(iterations + 1):
            last = done == iterations
            rows.append([done == 0, last, windows.get(done, 0), factor, after if last else factor, factor == 1])
    dtypes = (bool, bool, jnp.float32, jnp.float32, jnp.float32, bool)
    return ScheduleEntry(*(jnp.array(column, dtype) for column, dtype in zip(zip(*rows), dtypes)))
