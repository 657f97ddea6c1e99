"""Our BatchNorm against Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.models.batch_norm import BatchNorm


def ours_and_flax(train, dtype):
    flax = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)
    return BatchNorm(train, dtype), flax


def variables(rng, channels=3):
    def draw(low):
        return jnp.asarray(rng.uniform(low, low + 1, channels), jnp.float32)

    return {"params": {"scale": draw(0.5), "bias": draw(-1)}, "batch_stats": {"mean": draw(-1), "var": draw(0.5)}}


@pytest.mark.parametrize("shape", [(5, 4, 6, 3), (7, 3)], ids=["images", "vectors"])
@pytest.mark.parametrize("train", [True, False])
def test_equals_flax(train, shape):
    rng = np.random.default_rng(0)
    x, weights = jnp.asarray(rng.normal(0.3, 2, shape), jnp.float32), jnp.asarray(rng.normal(size=shape), jnp.float32)
    given = variables(rng)

    def outcome(layer):
        def value(params, x):
            y, updated = layer.apply({**given, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(weights * jnp.sin(y)), (y, updated)

        return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(given["params"], x)

    ours, theirs = map(outcome, ours_and_flax(train, jnp.float32))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_computes_in_float32(train):
    rng = np.random.default_rng(0)
    x, given = jnp.asarray(rng.normal(0.3, 2, (4, 5, 5, 3)), jnp.bfloat16), variables(rng)
    ours, theirs = (
        jax.vjp(lambda x: layer.apply(given, x, mutable=["batch_stats"]), x, has_aux=True)  # noqa: B023
        for layer in ours_and_flax(train, jnp.bfloat16)
    )
    assert ours[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(ours[0], np.float32), np.asarray(theirs[0], np.float32))
    for a, b in zip(jax.tree.leaves(ours[2]), jax.tree.leaves(theirs[2])):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    (gradient,), (expected,) = (pull_back(jnp.ones(x.shape, jnp.bfloat16)) for _, pull_back, _ in (ours, theirs))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(gradient, np.float32), np.asarray(expected, np.float32), atol=2e-2)


def test_it_begins_as_flax_does():
    ours, theirs = (layer.init(jax.random.key(0), jnp.ones((2, 4, 4, 3))) for layer in ours_and_flax(True, jnp.float32))
    assert jax.tree.map(np.asarray, ours).keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_second_derivatives_and_vmap():
    rng = np.random.default_rng(0)
    x, given = jnp.asarray(rng.normal(size=(2, 4, 3, 3, 3)), jnp.float32), variables(rng)

    def penalties(layer):
        def energy(x):
            return jnp.sum(jnp.sin(layer.apply(given, x, mutable=["batch_stats"])[0]))

        return jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(jax.grad(energy)(x) ** 2))))(x)

    ours, theirs = map(penalties, ours_and_flax(True, jnp.float32))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
