"""BatchNorm of what lies far from zero, in units of its own spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from piat_jax.core.sharding import AXIS, data_mesh
from piat_jax.models.batch_norm import BatchNorm, batch_norm_training

FAR = [0.0, 1e3, 3e3, 1e4]  # mean / std, one channel each
GIVEN = {
    "params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
    "batch_stats": {"mean": jnp.zeros(4), "var": jnp.zeros(4)},
}


def images(shape):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=shape) + np.array(FAR), jnp.float32)


def outcome(x, groups=1):
    @jax.jit
    def run(x):
        with batch_norm_training(groups):
            y, updated = BatchNorm(True).apply(GIVEN, x, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), (y, updated["batch_stats"])

    gradient, (y, running) = jax.grad(run, has_aux=True)(x)
    return {"y": y, "mean": running["mean"] / 0.1, "var": running["var"] / 0.1, "gradient": gradient}


def in_float64(x, groups=1):
    parts = []
    for part in np.split(np.asarray(x, np.float64), groups):
        axes = tuple(range(part.ndim - 1))
        mean, var = part.mean(axes), part.var(axes)
        root = np.sqrt(var + 1e-5)
        y = (part - mean) / root
        g = np.cos(y)
        gradient = (g - g.mean(axes) - y * (g * y).mean(axes)) / root
        parts.append((y, mean, var, gradient))
    y, mean, var, gradient = zip(*parts)
    return {
        "y": np.concatenate(y),
        "mean": np.mean(mean, 0),
        "var": np.mean(var, 0),
        "gradient": np.concatenate(gradient),
    }


def check(found, expected):
    np.testing.assert_allclose(found["var"], expected["var"], rtol=1e-3)
    np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-5, atol=1e-5)
    # Single precision has steps of 1e-3 at 1e4, and the sum of many such has an error of some of them.
    for name in ("y", "gradient"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-2)


@pytest.mark.parametrize("shape", [(16, 8, 8, 4), (64, 4)], ids=["images", "vectors"])
def test_the_variance_is_exact_far_from_zero(shape):
    x = images(shape)
    check(outcome(x), in_float64(x))


def test_so_it_is_in_groups():
    x = images((16, 8, 8, 4))
    check(outcome(x, groups=4), in_float64(x, groups=4))


def test_so_it_is_on_several_devices():
    x = images((16, 8, 8, 4))
    mesh = data_mesh(16)
    assert mesh is not None
    check(outcome(jax.device_put(x, NamedSharding(mesh, PartitionSpec(AXIS)))), in_float64(x))


def test_a_channel_that_is_constant_far_from_zero_stays_finite():
    x = jnp.full((8, 4, 4, 4), 12345.678)
    found = outcome(x)
    assert np.all(np.isfinite(found["y"]))
    assert np.all(np.isfinite(found["gradient"]))
    assert np.abs(found["var"]).max() < 1e-3
