"""Networks whose weights stay: what is computed once, what is folded, and that it changes rounding alone."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from piat_jax.attacks import apgd, bind, fab, pgd, square
from piat_jax.core.checks import InputError
from piat_jax.core.forward import make_logits_fn
from piat_jax.models import create
from piat_jax.programs.frozen import frozen
from piat_jax.programs.platform import compiling_for
from tests.jaxprs import equations

NETWORKS = {
    "resnet18": {"width": 8},
    "small_resnet": {"remat": True},
    "preact_resnet18": {"width": 8},
    "resnet50": {"width": 4},
    "wide_resnet": {"blocks_per_group": 1, "widen_factor": 1},
    "dm_wide_resnet": {"blocks_per_group": 1, "widen_factor": 1},
    "vit": {"width": 16, "depth": 2, "heads": 2},
    "imagenet_resnet": {"width": 4, "stage_sizes": (1, 1)},
    "convnext": {"depths": (1, 1), "widths": (8, 12), "stem": (4, 8), "stem_stride": 2},
    "swin": {"width": 8, "depths": (2,), "heads": (2,), "window": 4, "patch_size": 2},
    "xcit": {"width": 16, "depth": 1, "heads": 2, "patch_size": 4, "convolutions": 2},
}


def images(size=16):
    return jnp.asarray(np.random.default_rng(0).uniform(size=(4, size, size, 3)), jnp.float32)


def trained(variables):
    """Variables as they might be after training: no variance is 1, no mean and no bias 0, activations stay near 1."""
    rng = np.random.default_rng(3)

    def leaf(path, value):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name == "kernel" and value.ndim == 4:
            return jnp.asarray(rng.normal(size=value.shape) * (2 / np.prod(value.shape[:3])) ** 0.5, value.dtype)
        low, high = {"mean": (-0.3, 0.3), "bias": (-0.3, 0.3), "var": (0.5, 1.5), "scale": (0.7, 1.3)}.get(name, (0, 0))
        return value + jnp.asarray(rng.uniform(low, high, value.shape) - (name in ("var", "scale")), value.dtype)

    return jax.tree.map_with_path(leaf, variables)


@functools.cache
def network(name, dtype="float32"):
    model = create(name, num_classes=10, dtype=dtype, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), **NETWORKS[name])
    return make_logits_fn(model, trained(model.init(jax.random.key(0), images()[:1])))


def logits_and_gradient(logits_fn, x):
    return logits_fn(x), jax.grad(lambda x: jnp.sum(logits_fn(x) @ jnp.arange(-4.0, 6.0)))(x)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_change_by_rounding(name, platform):
    logits_fn, x = network(name), images()
    logits, gradient = jax.jit(lambda x: logits_and_gradient(logits_fn, x))(x)
    with compiling_for(platform):
        found = jax.jit(lambda x: logits_and_gradient(frozen(logits_fn, x), x))(x)
    np.testing.assert_allclose(found[0], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], gradient, atol=2e-5 * float(jnp.abs(gradient).max()))


def test_bfloat16_stays_as_near_to_float32():
    x = images()
    exact, half = network("resnet18")(x), network("resnet18", "bfloat16")
    error = float(jnp.std(half(x) - exact))
    assert 0 < float(jnp.std(frozen(half, x)(x) - exact)) < 1.2 * error


def inside(logits_fn, x):
    """Counts of the primitives that each call runs."""
    once = frozen(logits_fn, x)
    names = [equation.primitive.name for equation in equations(jax.make_jaxpr(once)(x).jaxpr)]
    return {name: names.count(name) for name in names}


def test_batch_norm_after_a_convolution_is_gone():
    x = images()
    found = inside(network("resnet18"), x)
    # A bias for each of 20 convolutions, eight residuals, the last bias; normalisation is the images'.
    assert (found["conv_general_dilated"], found["add"], found.get("rsqrt", 0)) == (20, 20 + 8 + 1, 0)
    assert (found["sub"], found.get("mul", 0)) == (1, 0)


def test_ordinary_flax_is_folded_too():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3), strides=2)(x)))
            return nn.Dense(5)(x.mean((1, 2)))

    variables = trained(Net().init(jax.random.key(0), images()))
    found = inside(lambda x: Net().apply(variables, x), images())
    assert "rsqrt" not in found
    assert (found["conv_general_dilated"], found.get("sub", 0), found["add"]) == (1, 0, 2)


def convolve(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 4)), jnp.float32)
SCALE = jnp.array([2.0, -1.0, 0.5, 3.0]).reshape(1, 1, 1, 4)
SHIFT = jnp.array([0.25, 1.0, -2.0, 0.0]).reshape(1, 1, 1, 4)


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (lambda y: (y - SHIFT) * SCALE, 0),
        (lambda y: SHIFT + SCALE * y, 0),
        (lambda y: (y / SCALE + 1.0) * 2.0, 0),
        (lambda y: y * SCALE * (1 + y.mean()), 3),  # used twice; one divides for the mean
        (lambda y: (1.0 - y) * SCALE, 1),
        (lambda y: SCALE / (3 + jnp.abs(y)), 1),
        (lambda y: y * jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1).repeat(4, 1).reshape(1, 16, 1, 1), 1),
    ],
    ids=["normalised", "reversed", "by numbers", "used twice", "subtracted from", "divided by it", "per row"],
)
def test_what_is_folded_and_what_is_not(after, left):
    x = images()

    def logits_fn(x):
        return jnp.tanh(after(convolve(x, KERNEL))).sum((1, 2))

    np.testing.assert_allclose(frozen(logits_fn, x)(x), logits_fn(x), rtol=2e-5, atol=2e-5)
    found = inside(logits_fn, x)
    assert sum(found.get(name, 0) for name in ("mul", "div")) == left


@pytest.mark.parametrize(
    "after",
    [lambda y: jax.nn.silu(y * SCALE), lambda y: jnp.tanh(y) * y, lambda y: jnp.tanh(y * SCALE) + y],
    ids=["inside of jit", "as it is", "folded and as it is"],
)
def test_a_convolution_that_is_used_twice_is_done_once(after):
    x = images()

    def logits_fn(x):
        return after(convolve(x, KERNEL)).sum((1, 2))

    np.testing.assert_allclose(frozen(logits_fn, x)(x), logits_fn(x), rtol=2e-5, atol=2e-5)
    assert inside(logits_fn, x)["conv_general_dilated"] == 1


def test_groups_and_other_layouts_are_folded_along_their_channels():
    x, kernel = images(), jnp.asarray(np.random.default_rng(2).normal(size=(6, 1, 3, 3)), jnp.float32)
    scale = jnp.arange(1.0, 7.0).reshape(1, 6, 1, 1)

    def logits_fn(x):
        x = x.transpose(0, 3, 1, 2)
        return ((lax.conv_general_dilated(x, kernel, (2, 2), "SAME", feature_group_count=3) - 1) * scale).sum((2, 3))

    np.testing.assert_allclose(frozen(logits_fn, x)(x), logits_fn(x), rtol=1e-4, atol=1e-4)
    assert "mul" not in inside(logits_fn, x)


def test_what_depends_on_weights_alone_is_computed_once():
    x, weights = images(), jnp.ones((16 * 16 * 3, 4))

    def logits_fn(x):
        return x.reshape(4, -1) @ jnp.linalg.qr(weights)[0]

    assert "qr" not in inside(logits_fn, x)
    assert inside(logits_fn, x)["dot_general"] == 1


def test_what_would_be_large_is_made_anew():
    x = images()

    def logits_fn(x):
        noise = jax.random.normal(jax.random.key(0), (1000, 100))  # of a key of two numbers
        return x.sum((1, 2)) + noise.sum()

    def kept(fn):
        return [c.size for c in jax.make_jaxpr(lambda x: fn(x))(x).consts]

    assert max(kept(frozen(logits_fn, x)), default=0) <= 1 << 16
    np.testing.assert_allclose(frozen(logits_fn, x)(x), logits_fn(x), rtol=1e-5)


def test_other_shapes_and_types_go_to_the_function_itself():
    calls = []

    def logits_fn(x):
        calls.append(x.shape)
        return x.sum((1, 2))

    once = frozen(logits_fn, images())
    once(images())
    assert calls == [(4, 16, 16, 3)]
    once(images()[:2])
    once(images().astype(jnp.bfloat16))
    assert calls == [(4, 16, 16, 3), (2, 16, 16, 3), (4, 16, 16, 3)]


def test_what_has_effects_happens_at_every_call():
    seen = []

    def logits_fn(x):
        jax.debug.callback(lambda value: seen.append(float(value)), jnp.float32(3.0))
        jax.debug.callback(lambda value: seen.append(float(value)), x[0, 0, 0, 0])
        return x.sum((1, 2))

    once = frozen(logits_fn, images())
    jax.effects_barrier()
    assert seen == []
    for _ in range(2):
        jax.block_until_ready(once(images()))
    jax.effects_barrier()
    assert len(seen) == 4


def test_weights_that_are_differentiated_outside():
    x = images()

    def energy(kernel, freeze):
        def logits_fn(x):
            return jax.nn.relu((convolve(x, kernel) - SHIFT) * SCALE).mean((1, 2))

        return jnp.sum((frozen(logits_fn, x) if freeze else logits_fn)(x) ** 2)

    np.testing.assert_allclose(jax.grad(energy)(KERNEL, True), jax.grad(energy)(KERNEL, False), rtol=1e-4, atol=1e-5)


def test_errors_are_those_of_an_attack():
    with pytest.raises(InputError, match="computes with NumPy"):
        frozen(lambda x: np.asarray(x).sum((1, 2)), images())


ATTACKS = {
    "pgd": bind(pgd, eps=0.03, step_size=0.01, steps=2),
    "apgd": bind(apgd, eps=0.03, steps=2),
    "fab": bind(fab, eps=0.03, steps=2),
    "square": bind(square, eps=0.03, queries=2),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_run_a_frozen_network(name):
    logits_fn, x = network("resnet18"), images()
    run = functools.partial(ATTACKS[name], key=jax.random.key(0))
    program = jax.make_jaxpr(lambda x: run(logits_fn, x, jnp.arange(4)))(x)
    loops = [e for e in equations(program.jaxpr) if e.primitive.name in ("while", "scan")]
    assert loops
    found = [
        e.primitive.name
        for loop in loops
        for e in equations(loop.params.get("body_jaxpr", loop.params.get("jaxpr")).jaxpr)
    ]
    assert "conv_general_dilated" in found
    shapes = [
        e.invars[0].aval.shape
        for loop in loops
        for e in equations(loop.params.get("body_jaxpr", loop.params.get("jaxpr")).jaxpr)
        if e.primitive.name == "rsqrt" and e.invars[0].aval.shape[-1:] == (8,)
    ]
    assert not shapes  # of BatchNorm's variances
