"""Programs that are rewritten for loops: whatever is around a convolution, and whoever wrote it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from piat_jax.attacks import apgd, bind, pgd
from piat_jax.evaluation.blocks import Blocks, Rows, _attack
from piat_jax.programs.jit import program_jit
from piat_jax.programs.loops import fori_loop, loop_safe, while_loop
from piat_jax.programs.platform import compiling_for, platform
from tests.jaxprs import equations
from tests.programs.test_convolutions import is_plain, lowered

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 3)), jnp.float32)
LABELS = jnp.array([0, 1, 2, 3])
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 4)), jnp.float32)


def convolve(x, kernel=KERNEL, stride=2):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def energy(x, kernel=KERNEL):
    return jnp.sum(jnp.sin(convolve(x, kernel)))


def linen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
            return nn.Dense(4)(nn.ConvTranspose(4, (3, 3), strides=(2, 2))(x).mean((1, 2)))

    variables = Net().init(jax.random.key(0), IMAGES)
    return lambda x: Net().apply(variables, x)


def of_nnx():
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(3, 6, (3, 3), strides=2, feature_group_count=3, rngs=rngs)
            self.out = nnx.Linear(6, 4, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.conv(x)).mean((1, 2)))

    graph, state = nnx.split(Net())
    return lambda x: nnx.merge(graph, state)(x)


def one_image_at_a_time():
    """As Equinox has it: channels first, no batch."""
    kernel, out = KERNEL.transpose(3, 2, 0, 1), jnp.eye(4)

    def net(image):
        x = lax.conv_general_dilated(image.transpose(2, 0, 1)[None], kernel, (2, 2), ((1, 1), (1, 1)))
        return jax.nn.relu(x[0]).mean((1, 2)) @ out

    return jax.vmap(net)


@pytest.mark.parametrize("network", [linen, of_nnx, one_image_at_a_time])
def test_an_attack_on_any_network_has_plain_convolutions_in_its_loop(network):
    logits_fn = network()
    attack = bind(pgd, eps=0.1, step_size=0.02, steps=3)

    def attacked(x):
        return attack(logits_fn, x, LABELS, key=jax.random.key(0))

    lines = lowered(attacked, IMAGES)
    assert lines
    assert all(map(is_plain, lines))
    with compiling_for("tpu"):  # as it was written
        assert not all(map(is_plain, lowered(lambda x: attacked(x), IMAGES)))
        expected = jax.jit(lambda x: attacked(x))(IMAGES)
    # A step's sign may differ where a gradient is 0 up to rounding: of 768 pixels none does here.
    np.testing.assert_allclose(jax.jit(attacked)(IMAGES), expected, atol=1e-6)


WRAPPED = {
    "jit": jax.jit(energy),
    "remat": jax.checkpoint(energy),
    "scan": lambda x: lax.scan(lambda total, k: (total + energy(x, k), None), 0.0, jnp.stack([KERNEL, KERNEL]))[0],
    "cond": lambda x: lax.cond(jnp.sum(x) > 0, energy, lambda x: 2 * energy(x), x),
    "map": lambda x: jnp.sum(lax.map(lambda x: energy(x[None]), x)),
    "while": lambda x: lax.fori_loop(0, 3, lambda i, total: total + energy(x), 0.0),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_whatever_is_around_it_is_kept(name):
    run = jax.value_and_grad(WRAPPED[name])
    value, gradient = jax.jit(loop_safe(run))(IMAGES)
    expected = jax.jit(run)(IMAGES)
    np.testing.assert_allclose(value, expected[0], rtol=1e-4)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-4)
    assert all(map(is_plain, lowered(loop_safe(run), IMAGES)))
    ours, theirs = (
        {equation.primitive.name for equation in equations(jax.make_jaxpr(fn)(IMAGES).jaxpr)}
        for fn in (loop_safe(run), run)
    )
    assert theirs <= ours


def test_a_custom_derivative_stays_the_custom_one():
    @jax.custom_vjp
    def doubled(x):
        return energy(x)

    doubled.defvjp(lambda x: (energy(x), x), lambda x, g: (2 * g * jax.grad(energy)(x),))
    native = jax.grad(energy)(IMAGES)
    for gradient in (loop_safe(jax.grad(doubled)), jax.grad(loop_safe(doubled))):
        np.testing.assert_allclose(jax.jit(gradient)(IMAGES), 2 * native, atol=1e-4)
    assert all(map(is_plain, lowered(loop_safe(jax.grad(doubled)), IMAGES)))

    @jax.custom_jvp
    def tripled(x):
        return energy(x)

    tripled.defjvp(lambda primals, tangents: (energy(*primals), 3 * jax.jvp(energy, primals, tangents)[1]))
    for gradient in (loop_safe(jax.grad(tripled)), jax.grad(loop_safe(tripled))):
        np.testing.assert_allclose(jax.jit(gradient)(IMAGES), 3 * native, atol=1e-4)


def test_derivatives_of_the_weights_flow_through_it():
    def loss(kernel):
        return fori_loop(0, 2, lambda i, total: total + energy(IMAGES, kernel), 0.0)

    np.testing.assert_allclose(jax.grad(loss)(KERNEL), 2 * jax.grad(energy, 1)(IMAGES, KERNEL), atol=1e-3)


def test_arguments_that_are_no_arrays_stay_what_they_are():
    @loop_safe
    def scaled(x, *, by, names):
        assert isinstance(by, float)
        return dict.fromkeys(names, by * x)

    assert jax.tree.map(float, scaled(jnp.float32(2), by=3.0, names=("a", "b"))) == {"a": 6, "b": 6}


def test_keys_and_random_numbers_are_the_same():
    def drawn(key):
        return energy(jax.random.uniform(key, IMAGES.shape))

    key = jax.random.key(3)
    np.testing.assert_allclose(loop_safe(drawn)(key), drawn(key), rtol=1e-5)


def test_loops_of_our_own():
    assert fori_loop(0, 3, lambda i, total: total + i, 0) == 3
    assert while_loop(lambda x: x < 10, lambda x: 2 * x, jnp.int32(3)) == 12


def test_a_function_is_traced_once_in_it():
    traced = []

    def body(x, _):
        traced.append(x)
        return x - 0.1 * jax.grad(energy)(x), None

    jax.jit(lambda x: lax.scan(loop_safe(body), x, length=2)[0])(IMAGES)
    assert len(traced) == 1


def test_equal_layers_share_what_they_are_traced_to():
    def run(x):
        for _ in range(3):
            x = jax.image.resize(convolve(x, jnp.concatenate([KERNEL[..., :3]], 3)), x.shape, "nearest")
        return jnp.sum(x)

    program = jax.make_jaxpr(loop_safe(jax.grad(run)))(IMAGES)
    calls = [e.params["jaxpr"] for e in program.jaxpr.eqns if "Convolution" in str(e.params.get("name"))]
    assert len(calls) >= 3
    assert len({id(call) for call in calls}) == 1


def test_a_whole_program_is_rewritten():
    @program_jit()
    def steps(x):
        return lax.fori_loop(0, 2, lambda _, x: x - jax.grad(energy)(x), x)

    lines = [line for line in steps.lower(IMAGES).as_text().splitlines() if "stablehlo.convolution" in line]
    assert lines
    assert all(map(is_plain, lines))


@pytest.mark.parametrize("count", [1, 4])
def test_an_attack_on_several_devices_is_rewritten_on_each(count):
    blocks = Blocks(linen(), 8, jax.devices()[:count], "highest")
    rows = Rows(np.asarray(IMAGES), np.asarray(LABELS), np.arange(4, dtype=np.uint32), np.full(4, True), None)
    padded = blocks._put(rows, 4)
    lowered = _attack.lower(
        bind(apgd, steps=2),
        blocks.logits_fn,
        padded,
        jax.random.key(0),
        jnp.float32(0.1),
        norm="linf",
        mesh=blocks.mesh,
    )
    lines = [line for line in lowered.as_text().splitlines() if "stablehlo.convolution" in line]
    assert len(lines) > 4
    assert all(map(is_plain, lines))


def sums(fn, x):
    """The axes of each sum of a program."""
    found = [e for e in equations(jax.make_jaxpr(fn)(x).jaxpr) if e.primitive.name == "reduce_sum"]
    return [e.params["axes"] for e in found]


def test_sums_over_pixels_go_one_axis_at_a_time():
    x = IMAGES

    def total(x):
        return jnp.sum(x, (0, 1, 2))

    np.testing.assert_allclose(loop_safe(total)(x), total(x), rtol=1e-6)
    assert sums(total, x) == [(0, 1, 2)]
    assert sums(loop_safe(total), x) == [(2,), (1,), (0,)]
    for axes in ((0, 3), (1,), (0, 1, 2, 3)):  # other sums stay
        assert sums(loop_safe(lambda x, axes=axes: jnp.sum(x, axes)), x) == [axes]


def test_the_platform_is_that_of_the_default_device_unless_it_is_said():
    assert platform() == jax.default_backend() == "cpu"
    with compiling_for("tpu"):
        assert platform() == "tpu"
        x = jax.make_jaxpr(loop_safe(jax.grad(energy)))(IMAGES)
    assert platform() == "cpu"
    assert str(x) == str(jax.make_jaxpr(jax.grad(energy))(IMAGES))
    with (
        pytest.raises(ValueError, match="target='cuda' is unknown; choose one of cpu, gpu, tpu"),
        compiling_for("cuda"),
    ):
        pass
