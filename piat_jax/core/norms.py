"""Threat models: per-example norms, projections, steepest-ascent directions and random points in a ball."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.core.checks import check_choice
from piat_jax.core.rng import flat_draw
from piat_jax.core.types import Array

Radius = Array | float
Box = tuple[float, float] | None

# Norms whose projection onto the ball does not depend on the box; for L1 it does (`project_l1`).
NORMS = ("linf", "l2")
ALL_NORMS = (*NORMS, "l1")
# Halvings of an interval no longer than the largest entry; the rest is below float32's resolution.
BISECTIONS = 32


class L2Rule(NamedTuple):
    """How a training code takes L2 steps: `|g|` as `max(|g| + offset, floor)`, the order of projections, the start.

    g is the gradient of the loss summed over the batch.
    """

    offset: float = 0.0
    floor: float = 0.0
    box_first: bool = False  # box, then ball; else ball, then box
    start_in_box: bool = (
        False  # "uniform" is a uniform image in the box, projected onto the ball; else drawn in the ball
    )


L2_RULES = {
    "exact": L2Rule(),  # robust_overfitting, except for its offset, and the evaluations of all papers
    "trades": L2Rule(offset=1e-8),  # TRADES and MART in RPAT's code
    "awp": L2Rule(offset=1e-10),  # AWP and ReBAT
    "advertorch": L2Rule(floor=1e-6, box_first=True, start_in_box=True),  # PGD-AT, Consistency and KD
}


def norm_name(norm: str, known: Iterable[str] = ALL_NORMS) -> str:
    """The canonical name of a norm; RobustBench's spellings are accepted.

    Raises:
      InputError: the name is not in `known`.

    >>> norm_name("Linf"), norm_name("L2"), norm_name("l1")
    ('linf', 'l2', 'l1')
    """
    given = norm.lower() if isinstance(norm, str) else norm
    check_choice("norm", given if given in known else norm, known)
    return given


def diameter(shape: tuple[int, ...], order: str, box: Box = (0.0, 1.0)) -> float:
    """The distance between two opposite corners of the box, the largest distance between two of its points.

    Args:
      shape: `(H, W, C)` of one image.
      order: the norm.
      box: bounds of valid pixels; None gives infinity.

    >>> [diameter((2, 2, 1), order) for order in ALL_NORMS]
    [1.0, 2.0, 4.0]
    """
    order = norm_name(order)
    if box is None:
        return math.inf
    pixels = math.prod(shape)
    return (box[1] - box[0]) * {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[order]


def cap_radius(radius: Radius, shape: tuple[int, ...], order: str, box: Box = (0.0, 1.0)) -> Radius:
    """The radius, capped at the diameter of the box, because squares of a radius of 1e20 would overflow.

    >>> cap_radius(1e30, (2, 2, 1), "l2")
    2.0
    """
    most = diameter(shape, order, box)
    return min(radius, most) if isinstance(radius, int | float) else jnp.minimum(radius, most)


def projection_radius(radius: Radius, shape: tuple[int, ...], order: str, box: Box = (0.0, 1.0)) -> Radius:
    """The radius, or infinity if the ball holds the whole box, so that projecting onto the ball changes nothing.

    With a finite radius, projecting onto the ball and then the box would pull points away from the box's corners.

    >>> projection_radius(1.0, (2, 2, 1), "l2"), projection_radius(2.0, (2, 2, 1), "l2")
    (1.0, inf)
    """
    most = diameter(shape, order, box)
    if isinstance(radius, int | float):
        return math.inf if radius >= most else radius
    return jnp.where(radius >= most, jnp.inf, radius)


def finite_entries(gradient: Array) -> Array:
    """A gradient with finite entries: NaN becomes 0, infinity the largest finite entry of its example, with its sign.

    So one pixel without a derivative affects neither the sign of the others nor the norm. If all finite entries are 0,
    infinity becomes 1.

    Args:
      gradient: `[B, ...]`.

    >>> finite_entries(jnp.array([[jnp.nan, -jnp.inf, 2.0]])).tolist()
    [[0.0, -2.0, 2.0]]
    """
    known = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    largest = norm(known, "linf")
    steep = per_example(jnp.where(largest > 0, largest, 1.0), gradient)
    return jnp.where(jnp.isinf(gradient), jnp.sign(gradient) * steep, known)


def per_example(value: Radius, like: Array) -> Array:
    """A scalar or one value per example, shaped to broadcast against `like[B, ...]` and in its dtype."""
    value = jnp.asarray(value, like.dtype)
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)) if value.ndim else value


def norm(x: Array, order: str) -> Array:
    """The norm of each example, `[B]`: `max |x|` for "linf", `sqrt(sum x^2)` for "l2", `sum |x|` for "l1".

    >>> [norm(jnp.array([[3.0, -4.0]]), order).item() for order in ALL_NORMS]
    [4.0, 5.0, 7.0]
    """
    order = norm_name(order)
    flat = x.reshape(x.shape[0], -1)
    if order == "linf":
        return jnp.max(jnp.abs(flat), axis=1)
    if order == "l1":
        return jnp.sum(jnp.abs(flat), axis=1)
    return jnp.sqrt(jnp.sum(flat * flat, axis=1))


def project(delta: Array, eps: Radius, order: str) -> Array:
    """Project each perturbation `delta[B, ...]` onto the ball of radius `eps` (scalar or `[B]`).

    >>> project(jnp.array([[3.0, -4.0]]), 1.0, "l2").round(3).tolist()
    [[0.6000000238418579, -0.800000011920929]]
    """
    order = norm_name(order, NORMS)
    eps = per_example(eps, delta)
    if order == "linf":
        return jnp.clip(delta, -eps, eps)
    length = per_example(norm(delta, "l2"), delta)
    return delta * jnp.minimum(1.0, eps / jnp.maximum(length, 1e-12))


def project_l1(delta: Array, eps: Radius, images: Array) -> Array:
    """The nearest (in L2) `z[B, ...]` to `delta` with `sum |z| <= eps` and `images + z` in [0, 1].

    `z_j = sign(delta_j) min(max(|delta_j| - lambda, 0), room_j)`, where `room_j` is how far pixel j may move in that
    direction. `lambda >= 0` is 0 inside the ball, else chosen so that the sum is `eps`. Projecting onto the ball and
    then clipping would leave part of the radius unused. Lambda is found by bisection, not by sorting, and its upper
    bound is used, so the sum exceeds `eps` at most by rounding.

    Args:
      delta: perturbations `[B, ...]`.
      eps: radius, the sum of absolute changes in pixel units, a scalar or `[B]`.
      images: `[B, ...]` in [0, 1].

    Source: Croce & Hein (2021), arXiv:2103.01208, Proposition 2.1.

    >>> x = jnp.array([[0.75, 0.5]])
    >>> project_l1(jnp.array([[2.0, 1.5]]), 0.5, x).round(3).tolist()
    [[0.25, 0.25]]
    """
    size, room = jnp.abs(delta), jnp.where(delta > 0, 1.0 - images, images)

    def kept(threshold: Array) -> Array:
        return jnp.clip(size - per_example(threshold, size), 0.0, room)

    def outside(threshold: Array) -> Array:
        return jnp.sum(kept(threshold).reshape(size.shape[0], -1), axis=1) > eps

    def bisect(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        too_low = outside(middle)
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    zero = jnp.zeros(size.shape[0], size.dtype)
    highest = jnp.where(outside(zero), norm(delta, "linf"), zero)
    _, threshold = jax.lax.fori_loop(0, BISECTIONS, bisect, (zero, highest))
    return jnp.sign(delta) * kept(threshold)


def ascent_direction(gradient: Array, order: str, rule: L2Rule = L2_RULES["exact"]) -> Array:
    """The unit step that increases a linear function most: `sign(g)` for "linf", `g / |g|` for "l2".

    A zero gradient gives a zero step, as does a NaN entry.

    Args:
      gradient: `[B, ...]`.
      order: "linf" or "l2".
      rule: how to divide by `|g|` in L2; default exactly.
    """
    order = norm_name(order, NORMS)
    if order == "linf":
        sign = jnp.sign(gradient)
        return jnp.where(jnp.isnan(sign), 0.0, sign)
    gradient = finite_entries(gradient)
    if rule.offset or rule.floor:
        return gradient / per_example(jnp.maximum(norm(gradient, "l2") + rule.offset, rule.floor), gradient)
    # Divide by the largest entry first: saturated networks have tiny gradients, whose squares underflow.
    gradient = divide(gradient, norm(gradient, "linf"))
    return divide(gradient, norm(gradient, "l2"))


def sparse_direction(gradient: Array, x: Array, share: Array | float) -> Array:
    """SLIDE's step under "l1": the signs of the gradient's largest entries, divided by their number.

    `u_j = sign(g_j) / m` for the m entries whose `|g_j|` is at least the `1 - share` quantile. Entries at 0 or 1 that
    the gradient pushes outwards cannot move and count as 0.

    Args:
      gradient: `[B, ...]`.
      x: the point of the gradient, `[B, ...]` in [0, 1].
      share: share of the entries, in (0, 1]; at least one moves.

    Source: Tramer & Boneh (2019), arXiv:1904.13000.

    >>> g, x = jnp.array([[3.0, -2.0, 1.0, 4.0]]), jnp.array([[0.5, 0.5, 0.5, 1.0]])
    >>> sparse_direction(g, x, 0.5).tolist()
    [[0.5, -0.5, 0.0, 0.0]]
    """
    gradient = finite_entries(gradient)
    moves = ~((x <= 0) & (gradient < 0)) & ~((x >= 1) & (gradient > 0))
    size = jnp.where(moves, jnp.abs(gradient), 0.0).reshape(x.shape[0], -1)
    pixels = size.shape[1]
    place = jnp.clip(pixels - jnp.maximum(jnp.round(share * pixels), 1), 0, pixels - 1).astype(jnp.int32)
    least = jnp.take(jnp.sort(size, axis=1), place, axis=1)
    taken = ((size >= least[:, None]) & (size > 0)).astype(x.dtype)
    count = jnp.maximum(jnp.sum(taken, axis=1, keepdims=True), 1)
    return (taken / count).reshape(x.shape) * jnp.sign(gradient)


def divide(x: Array, length: Array) -> Array:
    """Each example of `x[B, ...]` divided by its `length[B]`; unchanged if the length is 0."""
    return x / per_example(jnp.where(length > 0, length, 1.0), x)


def random_in_ball(keys: Array, eps: Radius, shape: tuple[int, ...], order: str, dtype: jnp.dtype) -> Array:
    """A random perturbation `[B, *shape]` for each of `keys[B]`.

    "linf" draws uniformly in the cube. "l2" draws a uniform direction and a radius from U(0, eps), as published
    adversarial-training codes do; this is denser at the centre than the uniform distribution in the ball. "l1" does the
    same with the direction of Laplace noise.
    """
    order = norm_name(order)
    if order == "linf":
        unit = jax.vmap(lambda key: flat_draw(jax.random.uniform, key, shape, dtype, minval=-1.0, maxval=1.0))(keys)
        return unit * per_example(eps, unit)

    def draw(key: Array) -> Array:
        direction_key, radius_key = jax.random.split(key)
        law = jax.random.normal if order == "l2" else jax.random.laplace
        direction = flat_draw(law, direction_key, shape, dtype)
        size = jnp.sqrt(jnp.sum(direction**2)) if order == "l2" else jnp.sum(jnp.abs(direction))
        return direction / size * jax.random.uniform(radius_key, (), dtype)

    unit = jax.vmap(draw)(keys)
    return unit * per_example(eps, unit)
