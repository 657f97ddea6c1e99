"""Threat models: per-example norms, projections, steepest-ascent directions and random points of a ball."""

import jax
import jax.numpy as jnp

from piat_jax.core.rng import flat_draw
from piat_jax.core.types import Array

# What models are trained under; the attacks of AutoAttack know one more.
NORMS = ("linf", "l2")
ALL_NORMS = (*NORMS, "l1")
# Halvings of an interval no longer than the largest entry: what is left is below float32's own resolution.
BISECTIONS = 32


def per_example(value: Array | float, like: Array) -> Array:
    """A scalar or one value per example, shaped to broadcast against `like[B, ...]`, in its dtype."""
    value = jnp.asarray(value, like.dtype)
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)) if value.ndim else value


def norm(x: Array, order: str) -> Array:
    """The norm of each example, `[B]`: `max |x|` for "linf", `sqrt(sum x^2)` for "l2", `sum |x|` for "l1".

    >>> [norm(jnp.array([[3.0, -4.0]]), order).item() for order in ALL_NORMS]
    [4.0, 5.0, 7.0]
    """
    flat = x.reshape(x.shape[0], -1)
    if order == "linf":
        return jnp.max(jnp.abs(flat), axis=1)
    if order == "l1":
        return jnp.sum(jnp.abs(flat), axis=1)
    return jnp.sqrt(jnp.sum(flat * flat, axis=1))


def project(delta: Array, eps: Array | float, order: str) -> Array:
    """The nearest point of the ball of radius `eps` (scalar or `[B]`) to each perturbation `delta[B, ...]`.

    >>> project(jnp.array([[3.0, -4.0]]), 1.0, "l2").round(3).tolist()
    [[0.6000000238418579, -0.800000011920929]]
    """
    eps = per_example(eps, delta)
    if order == "linf":
        return jnp.clip(delta, -eps, eps)
    length = per_example(norm(delta, "l2"), delta)
    return delta * jnp.minimum(1.0, eps / jnp.maximum(length, 1e-12))


def project_l1(delta: Array, eps: Array | float, images: Array) -> Array:
    """The nearest (in L2) `z[B, ...]` to `delta` with `sum |z| <= eps` and `images + z` in [0, 1].

    `z_j = sign(delta_j) min(max(|delta_j| - lambda, 0), room_j)`, where `room_j` is how far pixel j may go that way and
    `lambda >= 0` is 0 inside the ball, else what makes the sum `eps`. Clipping a projection onto the ball alone would
    leave radius unused. Lambda is bisected, not sorted for, and its upper end is taken, so the sum never exceeds `eps`
    but by rounding.

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


def ascent_direction(gradient: Array, order: str) -> Array:
    """The unit step that increases a linear function most: `sign(g)` for "linf", `g / |g|` for "l2".

    A zero gradient gives a zero step.
    """
    if order == "linf":
        return jnp.sign(gradient)
    # Its largest entry is taken out first: saturated networks have tiny gradients, whose squares underflow.
    gradient = divide(gradient, norm(gradient, "linf"))
    return divide(gradient, norm(gradient, "l2"))


def divide(x: Array, length: Array) -> Array:
    """Each example of `x[B, ...]` divided by its `length[B]`; left as it is where that is 0."""
    return x / per_example(jnp.where(length > 0, length, 1.0), x)


def random_in_ball(keys: Array, eps: Array | float, shape: tuple[int, ...], order: str, dtype: jnp.dtype) -> Array:
    """A random perturbation `[B, *shape]` for each of `keys[B]`.

    "linf" draws uniformly in the cube. "l2" draws a direction uniformly and a radius from U(0, eps), as the published
    adversarial-training codes do; that is denser at the centre than the uniform law of the ball.
    """
    if order == "linf":
        unit = jax.vmap(lambda key: flat_draw(jax.random.uniform, key, shape, dtype, minval=-1.0, maxval=1.0))(keys)
        return unit * per_example(eps, unit)

    def draw(key: Array) -> Array:
        direction_key, radius_key = jax.random.split(key)
        direction = flat_draw(jax.random.normal, direction_key, shape, dtype)
        return direction / jnp.sqrt(jnp.sum(direction**2)) * jax.random.uniform(radius_key, (), dtype)

    unit = jax.vmap(draw)(keys)
    return unit * per_example(eps, unit)
