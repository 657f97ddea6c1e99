"""FMN, a minimum-norm attack in L-inf, L2 and L1, which adapts the radius of a ball."""

import jax.numpy as jnp

from piat_jax.attacks.hyperplane import DUAL
from piat_jax.attacks.nearest import Count, Nearest, Search
from piat_jax.attacks.registry import minimum_norm
from piat_jax.attacks.targets import lead
from piat_jax.core.checks import check_at_least, check_range
from piat_jax.core.norms import ascent_direction, norm_name, project, project_l1
from piat_jax.core.norms import norm as length
from piat_jax.core.types import Array, LogitsFn
from piat_jax.programs.loops import fori_loop


@minimum_norm(
    "fmn",
    summary="Moves in a ball around the image that shrinks after a misclassified point and grows after others.",
    paper="Pintor et al. (2021), arXiv:2102.12827",
)
def fmn(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    active: Array | None = None,
    norm: str = "linf",
    steps: Count = 100,
    alpha: Array | float = 1.0,
    alpha_last: Array | float | None = None,
    gamma: Array | float = 0.05,
    gamma_last: Array | float = 0.001,
) -> Nearest:
    """FMN: `d <- box(ball(d + a g / |g|_2, eps))`, g the gradient of `max_{j != y} z_j - z_y`; no randomness.

    The radius becomes `min(eps (1 - c), |best|)` if the point before the step is misclassified, else `eps (1 + c)`.
    Until a misclassified point is found, it is at least `|d| + |margin| / |g|_dual`, the distance to the linearised
    boundary. `a` and c fall along a cosine, from `alpha` to `alpha_last` and from `gamma` to `gamma_last`. The result
    is the nearest misclassified point.

    Args:
      logits_fn: images to logits `[B, K]`, K at least 2.
      images: `[B, H, W, C]` floats in [0, 1].
      labels: `[B]` integers.
      key: checked, but not used.
      indices: not used.
      active: `[B]` which examples to attack; default all.
      norm: "linf", "l2" or "l1".
      steps: at least 1; may be traced, like all other numbers.
      alpha: L2 length of the first step, above 0, in pixel units (1 = the whole range).
      alpha_last: L2 length of the last step; default a hundredth of the first.
      gamma: relative change of the radius in the first step, in (0, 1).
      gamma_last: relative change of the radius in the last step, in [0, 1).

    Returns:
      `Nearest`; no gradient flows through it. Takes `steps + 1` queries, because it evaluates the last point too,
      unlike the published codes.

    Raises:
      InputError: an unknown norm, or an argument out of range.

    Source: Pintor et al. (2021), arXiv:2102.12827, Algorithm 1, without its L0 form and its start at another class's
    image. In the paper the radius reaches only to the linearised boundary until a point is found. Then nothing is found
    if the network is linear, since equal logits are not a success, or if the box is in the way; so here the radius also
    grows. Under "l1" the step is projected onto the intersection of ball and box; the published codes project onto the
    ball and then clip.

    >>> import jax
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)) - 1.5, jnp.zeros(len(x))], axis=1)
    >>> found = fmn(logits_fn, jnp.full((1, 1, 4, 1), 0.5), jnp.array([0]), key=jax.random.key(0))
    >>> 0.125 <= found.distances.item() < 0.1252  # the boundary is 0.5 / |w|_1 away, |w|_1 = 4
    True
    """
    del indices
    norm = norm_name(norm)
    for name, value in (("alpha", alpha), ("alpha_last", 0.0 if alpha_last is None else alpha_last)):
        check_at_least(name, value, 0)
    check_range("gamma", gamma, 0, 1, open_low=True)
    check_range("gamma_last", gamma_last, 0, 1)
    search = Search(logits_fn, images, labels, key=key, active=active, norm=norm, steps=steps, loss=lead)
    farthest = search.farthest()
    alpha_last = alpha / 100 if alpha_last is None else alpha_last

    def inside(delta: Array, eps: Array) -> Array:
        if norm == "l1":
            return search.images + project_l1(delta, eps, search.images)
        return jnp.clip(search.images + project(delta, eps, norm), 0.0, 1.0)

    def step(index: Array, carry: tuple[Array, Array, Nearest]) -> tuple[Array, Array, Nearest]:
        x, eps, found = carry
        gradient, margin, wrong = search.gradient(x)
        found = search.nearer(found, x, wrong)
        change = search.anneal(index, gamma, gamma_last)
        to_boundary = jnp.abs(margin) / jnp.maximum(length(gradient, DUAL[norm]), 1e-12)
        linear = length(x - search.images, norm) + to_boundary
        larger = jnp.where(
            jnp.isfinite(found.distances), eps * (1.0 + change), jnp.maximum(eps * (1.0 + change), linear)
        )
        eps = jnp.where(wrong, jnp.minimum(eps * (1.0 - change), found.distances), larger)
        eps = jnp.minimum(jnp.where(jnp.isfinite(eps), eps, farthest), farthest)
        moved = x - search.images + search.anneal(index, alpha, alpha_last) * ascent_direction(gradient, "l2")
        return inside(moved, eps), eps, found

    eps = jnp.zeros(labels.shape, jnp.float32)
    x, _, found = fori_loop(0, steps, step, (search.images, eps, search.first()))
    return search.last(found, x)
