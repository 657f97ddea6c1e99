"""Auto-PGD in the L1 ball: three shrinking radii and sparse steps."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.attacks.apgd_steps import HighestLoss, ScheduleEntry
from piat_jax.attacks.ascent import select
from piat_jax.core.norms import cap_radius, norm, per_example, project_l1
from piat_jax.core.rng import flat_draw
from piat_jax.core.types import Array


class SparseMemory(NamedTuple):
    """Memory of the L1 steps, one value per example."""

    step: Array  # L1 length of a step
    density: Array  # share of the pixels that a step changes
    changed: Array  # number of pixels in which the best point differed from the image, at the last checkpoint


class SparseApgdRule:
    """The L1 rule of `apgd`: steps along the signs of the largest gradient entries, as sparse as the best point.

    1. The run has phases of radius 3 eps, 2 eps and eps with ceil(.3 n), ceil(.3 n) and the remaining iterations. A
       phase starts from the previous phase's highest-loss point, the first from `N(0, I)`; starts are projected onto
       the phase's ball. Only points of the last phase count.
    2. With radius r and `a` pixels changed at its start, a phase begins with steps of length r and density
       `a / (1.5 D)`, D the number of pixels (times channels); .2 where `a` is 0.
    3. A step adds `step * sign(g_j) / m` to the m pixels whose `|g_j|` is at least entry `floor((1 - density) D)`,
       0-based, of the sorted `|g|`, then projects. There is no momentum.
    4. After every `max(floor(.04 n_phase), 1)` iterations, `b` is the number of pixels changed at the best point, and
       the density becomes `b / (1.5 D)`. If `b < .95 a`, the step is reset to r and the run continues from the best
       point; else the step is divided by 1.5, down to r / 10. Then `a` becomes `b`.

    By rule 3 a step changes ceil(b / 1.5) pixels, apart from ties and rounding, so at least two once two have changed.

    The reference code counts rounding residue of its projection as changed pixels. At the start it first projects a
    wrong point, which the phase's projection repairs. Neither is done here.
    """

    def __init__(self, images: Array, eps: Array):
        self.images, self.pixels = images, math.prod(images.shape[1:])
        self.eps = cap_radius(eps, images.shape[1:], "l1")

    def phases(self, steps: int) -> Sequence[tuple[float, int]]:
        """Multiples of eps and iterations of each phase."""
        early = math.ceil(0.3 * steps)
        return (3.0, early), (2.0, early), (1.0, steps - 2 * early)

    def windows(self, steps: int) -> Sequence[tuple[int, int]]:
        """Iterations done at each checkpoint of a phase, and the number since the previous checkpoint."""
        window = max(int(0.04 * steps), 1)
        return [(done, window) for done in range(window, steps + 1, window)]

    def draw(self, keys: Array) -> Array:
        """A random perturbation for each key, before projection."""
        return jax.vmap(lambda key: flat_draw(jax.random.normal, key, self.images.shape[1:], jnp.float32))(keys)

    def inside(self, x: Array, factor: Array | float) -> Array:
        """The nearest point of the ball of radius `factor * eps` and the box."""
        return self.images + project_l1(x - self.images, factor * self.eps, self.images)

    def memory(self) -> SparseMemory:
        """Placeholders: the first row of a phase sets them."""
        return SparseMemory(*3 * (jnp.zeros(len(self.images), jnp.float32),))

    def next(
        self, row: ScheduleEntry, x: Array, gradient: Array, loss: Array, best: HighestLoss, memory: SparseMemory
    ) -> tuple[Array, SparseMemory]:
        """The next point, and the new memory."""
        radius = row.factor * self.eps
        # At the first row the best point is the point itself.
        now = self._changed(best.x)
        untouched = now == 0
        density = now / self.pixels / 1.5
        step = jnp.where(row.first, radius, memory.step)
        changed = jnp.where(row.first, jnp.where(untouched, float(self.pixels), now), memory.changed)
        at = row.window > 0
        sparser = at & (now < 0.95 * changed)
        shorter = jnp.clip(step / 1.5, radius / 10, radius)
        memory = SparseMemory(
            step=jnp.where(at, jnp.where(sparser, radius, shorter), step),
            density=jnp.where(row.first, jnp.where(untouched, 0.2, density), jnp.where(at, density, memory.density)),
            changed=jnp.where(at, now, changed),
        )
        x, gradient = select(sparser, best.x, x), select(sparser, best.gradient, gradient)
        ahead = jnp.where(row.last, best.x, x + self._sparse(gradient, memory))
        return self.inside(ahead, row.next_factor), memory

    def _sparse(self, gradient: Array, memory: SparseMemory) -> Array:
        size = jnp.abs(gradient)
        place = jnp.clip((1.0 - memory.density) * self.pixels, 0, self.pixels - 1).astype(jnp.int32)
        ranked = jnp.sort(size.reshape(size.shape[0], -1), axis=1)
        threshold = jnp.take_along_axis(ranked, place[:, None], axis=1)[:, 0]
        signs = jnp.where(size >= per_example(threshold, size), jnp.sign(gradient), 0.0)
        return signs * per_example(memory.step / (norm(signs, "l1") + 1e-10), signs)

    def _changed(self, x: Array) -> Array:
        return jnp.sum((x != self.images).reshape(x.shape[0], -1), axis=1, dtype=jnp.float32)
