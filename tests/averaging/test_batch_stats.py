import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.averaging import interpolate, recompute_batch_stats
from piat_jax.core.checks import InputError
from piat_jax.core.types import Variables

IMAGES = jax.random.uniform(jax.random.key(0), (5, 4, 3, 3, 2)) * jnp.arange(1.0, 6.0).reshape(5, 1, 1, 1, 1) / 5


class Net(nn.Module):
    momentum: float = 0.9
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, name="first")(x)
        x = nn.relu(nn.Conv(3, (1, 1), name="conv")(x))
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, name="second")(x)
        return x.mean((1, 2))


@dataclasses.dataclass(frozen=True)
class LinenModel:
    module: nn.Module

    def init(self, key, images):
        variables = dict(self.module.init(key, images, train=False))
        return Variables(variables.pop("params", {}), variables)

    def apply(self, params, model_state, images, *, train, key=None):
        rngs = None if key is None else {"dropout": key}
        variables = {"params": params, **model_state}
        return self.module.apply(variables, images, train=train, rngs=rngs, mutable=list(model_state))


def setup(**options):
    model = LinenModel(Net(**options))
    params, state = model.init(jax.random.key(1), IMAGES[0])
    stale = jax.tree.map(lambda s: s + 100.0, state["batch_stats"])
    return model, Variables(params, {"batch_stats": stale, "seen": {"batches": jnp.int32(3)}})


def batch_statistics(params, images):
    """Mean and variance of each BatchNorm's input, worked out without Flax."""
    axes = (0, 1, 2)
    first = images.mean(axes), images.var(axes)
    x = (images - first[0]) / np.sqrt(first[1] + 1e-5) * params["first"]["scale"] + params["first"]["bias"]
    x = np.maximum(x @ params["conv"]["kernel"][0, 0] + params["conv"]["bias"], 0)
    return first, (x.mean(axes), x.var(axes))


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.0])
def test_mean_over_batches_of_their_statistics(momentum):
    model, variables = setup(momentum=momentum)
    run = jax.jit(functools.partial(recompute_batch_stats, momentum=momentum), static_argnums=0)
    params, state = run(model, variables, IMAGES)
    weights = jax.tree.map(np.asarray, variables.params)
    per_batch = [batch_statistics(weights, np.asarray(images)) for images in IMAGES]
    for layer, name in enumerate(("first", "second")):
        for which, statistic in enumerate(("mean", "var")):
            expected = np.mean([batch[layer][which] for batch in per_batch], axis=0)
            np.testing.assert_allclose(state["batch_stats"][name][statistic], expected, rtol=1e-4, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, params, variables.params)
    assert state["seen"]["batches"] == 3


def test_equals_a_pass_whose_momentum_falls_with_the_batches():
    # The other road to the same mean: running averages with momentum n / (n + 1), as SWA's own pass has them.
    _, variables = setup()
    params, running = variables.params, variables.model_state["batch_stats"]
    for n, images in enumerate(IMAGES):
        model = LinenModel(Net(momentum=n / (n + 1)))
        running = model.apply(params, {"batch_stats": running}, images, train=True)[1]["batch_stats"]
    model, variables = setup()
    ours = recompute_batch_stats(model, variables, IMAGES).model_state["batch_stats"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ours, running)


def test_one_batch_makes_evaluation_equal_training():
    model, variables = setup()
    fresh = recompute_batch_stats(model, variables, IMAGES[:1])
    in_training, _ = model.apply(*fresh, IMAGES[0], train=True)
    in_evaluation, _ = model.apply(*fresh, IMAGES[0], train=False)
    np.testing.assert_allclose(in_evaluation, in_training, rtol=1e-4, atol=1e-5)


def test_interpolation_with_falling_weight_is_the_mean():
    # The law behind the running mean, and behind SWA: weight n / (n + 1) of the past after n values.
    values = jax.random.normal(jax.random.key(2), (20, 3))
    mean, step = jnp.zeros(3), jax.jit(interpolate)
    for n, value in enumerate(values):
        mean = step(mean, value, n / (n + 1))
        np.testing.assert_allclose(mean, np.asarray(values)[: n + 1].mean(0), rtol=1e-4, atol=1e-6)


def test_random_models_get_a_key_per_batch():
    model, variables = setup(dropout=0.5)
    same = jnp.stack([IMAGES[0], IMAGES[0]])
    key = jax.random.key(3)
    run = jax.jit(recompute_batch_stats, static_argnums=0)
    one = run(model, variables, same[:1], key=key).model_state["batch_stats"]["first"]["mean"]
    two = run(model, variables, same, key=key).model_state["batch_stats"]["first"]["mean"]
    assert np.all(np.abs(one - two) > 1e-3)


def test_pixels_are_scaled_batch_by_batch():
    pixels = (255 * IMAGES).astype(jnp.uint8)
    model, variables = setup()
    whole, ours = (recompute_batch_stats(model, variables, images) for images in (pixels / 255, pixels))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, whole)


def test_models_without_state_pass_through():
    variables = Variables({"w": jnp.ones(2)}, {})
    assert recompute_batch_stats(LinenModel(nn.Dense(2)), variables, IMAGES) is variables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES[0]}, "give N >= 1 batches"),
        ({"images": IMAGES[:0]}, "give N >= 1 batches"),
        ({"images": jnp.zeros(IMAGES.shape, jnp.int32)}, "dtype int32; give floats"),
        ({"momentum": 1.0}, "momentum=1 never updates"),
        ({"momentum": -0.1}, "momentum=-0.1 must be in"),
        ({"variables": Variables({}, {"stats": jnp.ones(2)})}, 'no "batch_stats"'),
    ],
)
def test_bad_arguments_are_refused(change, message):
    model, variables = setup()
    arguments = {"variables": variables, "images": IMAGES, **change}
    with pytest.raises(InputError, match=message):
        recompute_batch_stats(model, **arguments)


def test_a_flax_module_or_something_else_than_variables():
    with pytest.raises(InputError, match=r"model is the Flax module Net; give piat_jax\.models\.LinenModel\(module\)"):
        recompute_batch_stats(Net(), Variables({}, {"batch_stats": {"mean": jnp.zeros(2)}}), IMAGES)
    with pytest.raises(InputError, match=r"variables is a dict of 2; give Variables\(params, model_state\)"):
        recompute_batch_stats(None, {"params": {}, "batch_stats": {}}, IMAGES)
