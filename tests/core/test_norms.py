import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.norms import ascent_direction, norm, per_example, project, random_in_ball
from piat_jax.core.rng import example_keys

DELTA = np.random.default_rng(0).normal(size=(4, 2, 2, 1)).astype(np.float32)


@pytest.mark.parametrize(("order", "numpy_order"), [("linf", np.inf), ("l2", 2), ("l1", 1)])
def test_norm(order, numpy_order):
    expected = np.linalg.norm(DELTA.reshape(4, -1).astype(np.float64), numpy_order, axis=1)
    np.testing.assert_allclose(norm(DELTA, order), expected, rtol=1e-6)


def test_per_example_shapes():
    like = jnp.zeros((3, 2, 2, 1), jnp.bfloat16)
    assert per_example(0.5, like).shape == ()
    assert per_example(np.arange(3.0), like).shape == (3, 1, 1, 1)
    assert per_example(np.arange(3.0), like).dtype == jnp.bfloat16


@pytest.mark.parametrize("eps", [0.7, np.array([0.1, 0.7, 1.2, 9.0], np.float32)], ids=["scalar", "each"])
@pytest.mark.parametrize(("order", "numpy_order"), [("linf", np.inf), ("l2", 2)])
def test_projection_is_the_nearest_point(order, numpy_order, eps):
    projected = np.asarray(project(jnp.asarray(DELTA), eps, order), np.float64).reshape(4, -1)
    eps = np.broadcast_to(eps, 4)
    target = DELTA.reshape(4, -1).astype(np.float64)
    assert np.all(np.linalg.norm(projected, numpy_order, axis=1) <= eps * (1 + 1e-6))
    inside = np.linalg.norm(target, numpy_order, axis=1) <= eps
    np.testing.assert_array_equal(projected[inside], target[inside])
    # No point of the ball is nearer: neither random ones nor ones close by.
    distance = np.linalg.norm(projected - target, axis=1)
    rng = np.random.default_rng(1)
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        points = projected + scale * rng.normal(size=(2000, 4, 4))
        in_ball = np.linalg.norm(points, numpy_order, axis=2) <= eps
        distances = np.where(in_ball, np.linalg.norm(points - target, axis=2), np.inf)
        assert np.all(distances.min(0) >= distance - 1e-6)


@pytest.mark.parametrize("order", ["linf", "l2"])
def test_zero_vectors(order):
    zero = jnp.zeros((2, 1, 2, 1))
    assert not np.any(project(zero, 0.5, order))
    assert not np.any(project(zero + 1.0, 0.0, order))
    assert not np.any(ascent_direction(zero, order))
    mixed = zero.at[1].set(1.0)
    np.testing.assert_allclose(norm(ascent_direction(mixed, order), order), [0.0, 1.0], rtol=1e-6)


def test_ascent_direction():
    np.testing.assert_array_equal(ascent_direction(jnp.asarray(DELTA), "linf"), np.sign(DELTA))
    expected = DELTA / np.sqrt(np.square(DELTA).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(ascent_direction(jnp.asarray(DELTA), "l2"), expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e18, 1e30])
def test_direction_does_not_depend_on_the_length_of_the_gradient(scale):
    # Saturated networks have tiny gradients whose squares underflow; they still say which way is up.
    direction = ascent_direction(jnp.asarray(DELTA) * scale, "l2")
    np.testing.assert_allclose(direction, ascent_direction(jnp.asarray(DELTA), "l2"), rtol=1e-5)


@pytest.mark.parametrize("order", ["linf", "l2"])
def test_random_points_fill_the_ball(order):
    keys = example_keys(jax.random.key(0), jnp.arange(2000))
    eps = jnp.where(jnp.arange(2000) < 1000, 0.5, 2.0)
    points = np.asarray(random_in_ball(keys, eps, (2, 1, 1), order, jnp.float32)).reshape(2000, 2)
    relative = np.linalg.norm(points, np.inf if order == "linf" else 2, axis=1) / np.asarray(eps)
    assert relative.max() <= 1 + 1e-6
    # P(r <= t) is t^2 for the square, and t for a uniform radius.
    for t in (0.25, 0.5, 0.75):
        assert abs(np.mean(relative <= t) - (t**2 if order == "linf" else t)) < 0.05
    assert np.all(np.abs(np.mean(np.sign(points), axis=0)) < 0.1)
    assert abs(np.mean(np.sign(points[:, 0] * points[:, 1]))) < 0.1
