"""DDN, a minimum-norm attack in L2, which separates a perturbation's direction from its length."""

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks.ascent import select
from piat_jax.attacks.nearest import Count, Nearest, Search
from piat_jax.attacks.registry import minimum_norm
from piat_jax.core.checks import InputError, check_at_least, check_range
from piat_jax.core.norms import ascent_direction, divide, norm_name, per_example
from piat_jax.core.norms import norm as length
from piat_jax.core.rng import example_keys, flat_draw
from piat_jax.core.types import Array, LogitsFn
from piat_jax.programs.loops import fori_loop


@minimum_norm(
    "ddn",
    summary="Moves on a sphere around the image that shrinks after a misclassified point and grows after others; L2.",
    paper="Rony et al. (2019), arXiv:1811.09600",
)
def ddn(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    active: Array | None = None,
    norm: str = "l2",
    steps: Count = 100,
    gamma: Array | float = 0.05,
    start_eps: Array | float = 1.0,
) -> Nearest:
    """DDN: `d <- d + a g / |g|`, then `x + d <- box(x + eps d / |d|)` with `eps <- eps (1 - gamma)` or `(1 + gamma)`.

    g is the gradient of the cross-entropy. The radius shrinks if the point before the step was misclassified, else it
    grows. The step length `a` falls from 1 to .01 along a cosine. The result is the nearest misclassified point.

    Args:
      logits_fn: images to logits `[B, K]`, K at least 2.
      images: `[B, H, W, C]` floats in [0, 1].
      labels: `[B]` integers.
      key: typed key; only used to draw a direction if a gradient is 0, for example i from `fold_in(key, indices[i])`.
      indices: `[B]` each example's index in its data set; default `0..B-1`.
      active: `[B]` which examples to attack; default all.
      norm: "l2".
      steps: at least 1; may be traced, like all other numbers.
      gamma: relative change of the radius per step, in (0, 1).
      start_eps: the first radius, above 0, in pixel units (1 = the whole range), capped at the distance to the farthest
        corner of the box.

    Returns:
      `Nearest`; no gradient flows through it. Takes `steps + 1` queries, because it evaluates the last point too,
      unlike the published code.

    Raises:
      InputError: another norm, or an argument out of range.

    Source: Rony et al. (2019), arXiv:1811.09600, Algorithm 1. Its code rounds images to 256 levels; here they are not.

    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)) - 1.5, jnp.zeros(len(x))], axis=1)
    >>> found = ddn(logits_fn, jnp.full((1, 1, 4, 1), 0.5), jnp.array([0]), key=jax.random.key(0))
    >>> 0.25 <= found.distances.item() < 0.2501  # the boundary is 0.5 / |w| away, |w| = 2
    True
    """
    if norm_name(norm) != "l2":
        raise InputError(f"norm={norm!r} is not supported by ddn; give 'l2', or use fmn or fab")
    check_range("gamma", gamma, 0, 1, open_low=True)
    check_at_least("start_eps", start_eps, 0)
    loss = losses.cross_entropy
    search = Search(logits_fn, images, labels, key=key, active=active, norm="l2", steps=steps, loss=loss)
    keys = example_keys(key, jnp.arange(labels.shape[0]) if indices is None else indices)
    farthest, shape = search.farthest(), images.shape[1:]

    def drawn(index: Array) -> Array:
        return jax.vmap(lambda key: flat_draw(jax.random.normal, jax.random.fold_in(key, index), shape, jnp.float32))(
            keys
        )

    def step(index: Array, carry: tuple[Array, Array, Nearest]) -> tuple[Array, Array, Nearest]:
        x, eps, found = carry
        gradient, _, wrong = search.gradient(x)
        found = search.nearer(found, x, wrong)
        flat = length(gradient, "linf") == 0
        # The branch makes XLA draw only if some example has no gradient.
        gradient = jax.lax.cond(jnp.any(flat), lambda: select(flat, drawn(index), gradient), lambda: gradient)
        moved = x - search.images + search.anneal(index, 1.0, 0.01) * ascent_direction(gradient, "l2")
        eps = jnp.minimum(eps * jnp.where(wrong, 1.0 - gamma, 1.0 + gamma), farthest)
        moved = divide(moved, length(moved, "l2")) * per_example(eps, moved)
        return jnp.clip(search.images + moved, 0.0, 1.0), eps, found

    eps = jnp.broadcast_to(jnp.asarray(start_eps, jnp.float32), labels.shape)
    x, _, found = fori_loop(0, steps, step, (search.images, eps, search.first()))
    return search.last(found, x)
