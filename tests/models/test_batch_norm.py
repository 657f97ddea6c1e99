"""Our BatchNorm against Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.models import create
from piat_jax.models.batch_norm import BatchNorm, batch_norm_training


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


def groupwise(x, scale, bias, groups):
    """The formula in float64, group by group; and the means over the groups of their mean and variance."""
    parts = np.split(np.asarray(x, np.float64), groups)
    moments = [(part.mean((0, 1, 2)), part.var((0, 1, 2))) for part in parts]
    y = np.concatenate([(p - mean) / np.sqrt(var + 1e-5) * scale + bias for p, (mean, var) in zip(parts, moments)])
    return y, *np.mean(moments, axis=0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_are_normalised_by_their_own_statistics(groups):
    rng = np.random.default_rng(0)
    given, weights = variables(rng), rng.normal(size=(8, 3, 2, 3))
    # The groups lie far apart, so that no other division of the batch gives the same.
    x = np.float32(rng.normal(size=(8, 3, 2, 3)) + np.arange(8).reshape(-1, 1, 1, 1))
    scale, bias = (np.asarray(given["params"][name], np.float64) for name in ("scale", "bias"))

    @jax.jit
    def forward(x):
        with batch_norm_training(groups):
            y, updated = BatchNorm(True).apply(given, x, mutable=["batch_stats"])
        return jnp.sum(y * weights), (y, updated["batch_stats"])

    gradient, (y, running) = jax.grad(forward, has_aux=True)(x)
    expected, mean, var = groupwise(x, scale, bias, groups)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for name, batch in (("mean", mean), ("var", var)):
        before = np.asarray(given["batch_stats"][name], np.float64)
        np.testing.assert_allclose(running[name], 0.9 * before + 0.1 * batch, rtol=1e-5)
    step = np.zeros_like(x, np.float64)
    step[5, 1, 1, 2] = 1e-4
    above, below = (np.sum(groupwise(x + sign * step, scale, bias, groups)[0] * weights) for sign in (1, -1))
    np.testing.assert_allclose(gradient[5, 1, 1, 2], (above - below) / 2e-4, rtol=1e-3, atol=1e-4)


def test_a_model_with_groups():
    options = {"num_classes": 3, "width": 2, "stage_sizes": (1,)}
    plain, grouped = (create("small_resnet", bn_groups=groups, **options) for groups in (1, 2))
    assert plain == create("small_resnet", **options) != grouped
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    variables = plain.init(jax.random.key(1), images)
    apply = jax.jit(lambda model, images, train: model.apply(*variables, images, train=train), static_argnums=(0, 2))
    together, halves = (
        apply(grouped, images, True)[0],
        [apply(plain, half, True)[0] for half in (images[:2], images[2:])],
    )
    np.testing.assert_allclose(together, np.concatenate(halves), rtol=1e-4, atol=1e-5)
    assert not np.allclose(together, apply(plain, images, True)[0], atol=1e-3)
    np.testing.assert_array_equal(apply(grouped, images, False)[0], apply(plain, images, False)[0])
    with pytest.raises(InputError, match="bn_groups=2 does not divide a batch of 3"):
        grouped.apply(*variables, images[:3], train=True)
    with pytest.raises(InputError, match="model 'vit' has no BatchNorm"):
        create("vit", num_classes=3, bn_groups=2)


@pytest.mark.parametrize("train", [True, False])
def test_the_constant_in_the_root(train):
    """1e-5 under the root: where the variance is smaller than that, it decides."""
    x = 2.0 + 1e-3 * np.random.default_rng(0).normal(size=(16, 4, 4, 2)).astype(np.float32)
    x[..., 1] = 3.0  # no variance at all
    layer = BatchNorm(train=train)
    variables = layer.init(jax.random.key(0), jnp.asarray(x))
    mean, var = x.mean((0, 1, 2), np.float64), x.astype(np.float64).var((0, 1, 2))
    variables = {**variables, "batch_stats": {"mean": jnp.float32(mean), "var": jnp.float32(var)}}
    y, _ = layer.apply(variables, jnp.asarray(x), mutable=["batch_stats"])
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=2e-4)
    assert 0.25 < np.std(y[..., 0]) < 0.35
