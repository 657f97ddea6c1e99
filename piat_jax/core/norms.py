"""Threat models: per-example norms, projections, steepest-ascent directions and random points of a ball."""

import jax
import jax.numpy as jnp

from piat_jax.core.rng import flat_draw
from piat_jax.core.types import Array

# What models are trained under; the attacks of AutoAttack know one more.
NORMS = ("linf", "l2")
ALL_NORMS = (*NORMS, "l1")


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
