"""FAB, the minimum-norm attack of AutoAttack: the nearest misclassified image, and whether it lies in the ball."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.attacks.ascent import select
from piat_jax.attacks.hyperplane import DUAL, step_to_hyperplane
from piat_jax.attacks.nearest import Count, Nearest
from piat_jax.attacks.outcome import Outcome
from piat_jax.attacks.registry import minimum_norm
from piat_jax.attacks.targets import check_targets, ranked_others
from piat_jax.core.checks import (
    check_array,
    check_at_least,
    check_count,
    check_images,
    check_key,
    check_radius,
    check_range,
)
from piat_jax.core.network_checks import check_network, checked_logits
from piat_jax.core.norms import cap_radius, finite_entries, norm_name, per_example
from piat_jax.core.norms import norm as length
from piat_jax.core.rng import example_keys, fold_in
from piat_jax.core.types import Array, LogitsFn
from piat_jax.programs.frozen import frozen
from piat_jax.programs.loops import fori_loop, while_loop


def fab(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    active: Array | None = None,
    eps: Array | float = 8 / 255,
    norm: str = "linf",
    steps: Count = 100,
    restarts: Count = 1,
    targets: Array | int | None = 9,
    alpha_max: Array | float = 0.1,
    eta: Array | float = 1.05,
    beta: Array | float = 0.9,
) -> Outcome:
    """FAB: `x' <- box((1 - a)(x' + eta d(x')) + a (x + eta d(x)))`, `d` the shortest way to the linearised boundary.

    The boundary between the label and a target class is linearised at `x'`; `a = |d(x')| / (|d(x')| + |d(x)|)`, at most
    `alpha_max`. A misclassified `x'` is stored if it is the nearest so far, and moves back to `x + beta (x' - x)`. An
    example is done as soon as its stored point lies in the ball.

    Args:
      logits_fn: images to logits `[B, K]`, K at least 2.
      images: `[B, H, W, C]` floats in [0, 1].
      labels: `[B]` integers.
      key: typed key; only restarts after the first draw from it, example i from `fold_in(key, indices[i])`.
      indices: `[B]` each example's index in its data set; default `0..B-1`.
      active: `[B]` which examples to attack; default all.
      eps: radius in pixel units (1 = the whole range), a scalar or `[B]`, traced.
      norm: "linf", "l2" or "l1".
      steps: steps per run, at least 1, with 2 forwards each. May be traced, like all other numbers.
      restarts: runs per target, at least 1: the first starts at `x`, the others on the sphere of radius `eps / 2`
        around it. All targets have their first run before any has its second.
      targets: the number of classes to aim at, one after the other, by falling clean logit: FAB-T; at most K - 1 are
        used. Or `[B]` integers, one target class per example. None is untargeted FAB: every step aims at the class
        whose linearised boundary is nearest, with K backward passes per step.
      alpha_max: the largest pull of `x`, in [0, 1].
      eta: how far a step overshoots the boundary, at least 1.
      beta: the share of its distance that a misclassified point keeps, in [0, 1].

    Returns:
      `Outcome`, in float32; no gradient flows through it. `queries` counts the clean forward and two forwards per step:
      the K backward passes of the untargeted attack share one. A misclassified clean image counts as fooled at
      distance 0.

    Raises:
      InputError: an unknown norm, or an argument out of range.

    Source: Croce & Hein (2020), arXiv:1907.02044; targets and constants: AutoAttack, arXiv:2003.01690. Like AutoAttack,
    this leaves out the paper's final search along the line to `x`. AutoAttack's code takes all steps and then checks
    the distance; stopping once the point is in the ball gives the same flags. Logits that are not finite never count as
    success.

    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)) - 1.5, jnp.zeros(len(x))], axis=1)
    >>> x, key = jnp.full((1, 1, 4, 1), 0.5), jax.random.key(0)
    >>> [fab(logits_fn, x, jnp.array([0]), key=key, eps=eps, steps=9).fooled.item() for eps in (0.12, 0.14)]
    [False, True]
    """
    # If no point was found, the distance is inf, which no radius may reach.
    radius = jnp.minimum(jnp.asarray(eps, jnp.float32), jnp.finfo(jnp.float32).max)
    nearest, distances, queries = fab_distances(
        logits_fn,
        images,
        labels,
        key=key,
        indices=indices,
        active=active,
        eps=eps,
        norm=norm,
        steps=steps,
        restarts=restarts,
        targets=targets,
        alpha_max=alpha_max,
        eta=eta,
        beta=beta,
        enough=radius,
    )
    fooled = distances <= radius
    images = select(fooled, nearest, images.astype(jnp.float32))
    return Outcome(jax.lax.stop_gradient(images), fooled, queries)


@minimum_norm(
    "fab-norm",
    title="FAB",
    summary="Steps to the nearest linearised boundary, pulled back towards the image.",
    paper="Croce and Hein (2020), arXiv:1907.02044",
)
def fab_distances(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    indices: Array | None = None,
    active: Array | None = None,
    eps: Array | float = 8 / 255,
    norm: str = "linf",
    steps: Count = 100,
    restarts: Count = 1,
    targets: Array | int | None = 9,
    alpha_max: Array | float = 0.1,
    eta: Array | float = 1.05,
    beta: Array | float = 0.9,
    enough: Array | float | None = None,
) -> Nearest:
    """The nearest misclassified images that FAB finds, and their distances.

    Args as in `fab`, except two: `eps` only sets the random starts, and an example is done once a point is found within
    distance `enough` (a scalar or `[B]`). Without `enough` the attack takes all its steps, as published.

    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)) - 1.5, jnp.zeros(len(x))], axis=1)
    >>> x = jnp.full((1, 1, 4, 1), 0.5)
    >>> 0.125 < fab_distances(logits_fn, x, jnp.array([0]), key=jax.random.key(0), steps=30).distances.item() < 0.127
    True
    """
    check_network(logits_fn)
    check_images("images", images)
    check_array("labels", labels)
    check_key(key)
    norm = norm_name(norm)
    check_radius("eps", eps, norm)
    check_count("steps", steps, 1)
    check_count("restarts", restarts, 1)
    if targets is not None:
        check_targets(targets, images.shape[0])
    check_range("alpha_max", alpha_max, 0, 1)
    check_at_least("eta", eta, 1)
    check_range("beta", beta, 0, 1)
    batch, shape = labels.shape[0], images.shape
    images = jax.lax.stop_gradient(images.astype(jnp.float32))
    x, eps = images.reshape(batch, -1), cap_radius(eps, shape[1:], norm)
    enough = -1.0 if enough is None else enough
    active = jnp.full(labels.shape, True) if active is None else active
    keys = example_keys(key, jnp.arange(batch) if indices is None else indices)

    network = frozen(logits_fn, images)

    def forward(x: Array) -> Array:
        return checked_logits(network, x.reshape(shape)).astype(jnp.float32)

    clean = forward(x)
    classes = clean.shape[1]
    one_class = targets is not None and jnp.ndim(targets) > 0
    ranked = jnp.asarray(targets)[:, None] if one_class else ranked_others(clean, labels)
    ranks = 1 if targets is None or one_class else jnp.minimum(targets, classes - 1)
    distance = jnp.where(active & losses.misclassified(clean, labels), jnp.float32(0), jnp.float32(jnp.inf))

    def body(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        index, point, nearest, distance, queries = carry
        run, step = index // steps, index % steps
        restart, rank = run // ranks, run % ranks
        point = jax.lax.cond(step == 0, lambda: _start(x, keys, restart, rank, restarts, eps, norm), lambda: point)

        # Two calls of the network per step: the next step does not start at a point that was judged misclassified.
        logits, pullback = jax.vjp(forward, point)
        if targets is None:
            gap, normal = _nearest_boundary(logits, pullback, labels, norm)
        else:
            gap, normal = _boundary(logits, pullback, labels, jnp.take(ranked, rank, axis=1))
        working = active & (distance > enough)
        gap = jnp.where(working, gap, 0.0)  # so that the projection does not iterate for finished examples
        gaps = jnp.concatenate([gap, gap - jnp.sum(normal * (x - point), axis=1)])
        both = step_to_hyperplane(jnp.concatenate([point, x]), jnp.concatenate([normal, normal]), gaps, norm)
        lengths = jnp.maximum(length(both, norm), 1e-8)
        alpha = jnp.minimum(lengths[:batch] / (lengths[:batch] + lengths[batch:]), alpha_max)[:, None]
        point = jnp.clip((1 - alpha) * (point + eta * both[:batch]) + alpha * (x + eta * both[batch:]), 0.0, 1.0)

        found = working & losses.misclassified(forward(point), labels)
        away = length(point - x, norm)
        nearer = found & (away < distance)
        nearest = jnp.where(nearer[:, None], point, nearest)
        point = jnp.where(found[:, None], x + beta * (point - x), point)
        return index + 1, point, nearest, jnp.where(nearer, away, distance), queries + 2 * working.astype(jnp.int32)

    def unfinished(carry: tuple[Array, ...]) -> Array:
        return (carry[0] < restarts * ranks * steps) & jnp.any(active & (carry[3] > enough))

    first = (jnp.int32(0), x, x, distance, active.astype(jnp.int32))
    _, _, nearest, distance, queries = while_loop(unfinished, body, first)
    return jax.lax.stop_gradient(Nearest(nearest.reshape(shape), distance, queries))


Pullback = Callable[[Array], tuple[Array]]


def _boundary(logits: Array, pullback: Pullback, labels: Array, target: Array) -> tuple[Array, Array]:
    """The amount by which `z_target - z_label` must rise to reach 0, `[B]`, and its gradient, `[B, D]`."""
    classes, dtype = logits.shape[1], logits.dtype
    (normal,) = pullback(jax.nn.one_hot(target, classes, dtype=dtype) - jax.nn.one_hot(labels, classes, dtype=dtype))
    of_label, of_target = (jnp.take_along_axis(logits, c[:, None], axis=1)[:, 0] for c in (labels, target))
    return of_label - of_target, finite_entries(normal)


def _nearest_boundary(logits: Array, pullback: Pullback, labels: Array, norm: str) -> tuple[Array, Array]:
    """`_boundary` for the class whose linearised boundary is nearest, with one gradient in memory at a time.

    Computing all K with vmap takes the same time inside the loop over steps, and K times the memory.
    """

    def compare(k: Array, best: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        gap, normal = _boundary(logits, pullback, labels, jnp.full_like(labels, k))
        ratio = jnp.where(labels == k, jnp.inf, jnp.abs(gap) / (length(normal, DUAL[norm]) + 1e-12))
        nearer = ratio < best[0]
        return (
            jnp.where(nearer, ratio, best[0]),
            jnp.where(nearer, gap, best[1]),
            jnp.where(nearer[:, None], normal, best[2]),
        )

    away = jnp.full(labels.shape, jnp.inf, logits.dtype)
    none = (away, jnp.zeros_like(away), jnp.zeros(jax.eval_shape(pullback, logits)[0].shape, logits.dtype))
    return fori_loop(0, logits.shape[1], compare, none)[1:]


def _start(
    x: Array, keys: Array, restart: Array, rank: Array | int, restarts: Count, eps: Array | float, norm: str
) -> Array:
    """The start of a run: `x`, or for later restarts a point on the sphere of radius `eps / 2`, clipped."""
    if isinstance(restarts, int) and restarts == 1:
        return x

    def draw(key: Array) -> Array:
        if norm == "linf":
            return jax.random.uniform(key, x.shape[1:], x.dtype, minval=-1.0, maxval=1.0)
        return jax.random.normal(key, x.shape[1:], x.dtype)

    def sphere() -> Array:
        way = jax.vmap(draw)(fold_in(keys, restart, rank))
        return jnp.clip(x + way / length(way, norm)[:, None] * per_example(eps, x) / 2, 0.0, 1.0)

    return jax.lax.cond(restart > 0, sphere, lambda: x)
