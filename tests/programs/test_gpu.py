"""What is rewritten for GPUs: values stay, and the program has the form that XLA makes one kernel of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from piat_jax.programs.loops import loop_safe
from piat_jax.programs.platform import compiling_for
from tests.jaxprs import equations

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8, 3)), jnp.float32)
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 4)), jnp.float32)
POINT = jnp.asarray(np.random.default_rng(2).normal(size=(1, 1, 4, 6)), jnp.float32)
NHWC = ("NHWC", "HWIO", "NHWC")


def convolve(x, kernel, stride=1, padding="SAME"):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=NHWC)


def network(x):
    hidden = jax.nn.relu(convolve(x, KERNEL) + 1)
    return jnp.sum(jnp.sin(nn.relu(convolve(hidden, POINT, 2))))


def for_gpu(fn, *arguments):
    with compiling_for("gpu"):
        return jax.make_jaxpr(loop_safe(fn))(*arguments)


def test_values_and_gradients_are_the_same():
    run = jax.value_and_grad(network)
    with compiling_for("gpu"):
        value, gradient = jax.jit(loop_safe(run))(X)
    expected = jax.jit(run)(X)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-6)


def test_relu_passes_no_gradient_at_zero():
    x = jnp.array([-1.0, 0.0, 2.0])
    with compiling_for("gpu"):
        gradient = jax.jit(loop_safe(jax.grad(lambda x: jnp.sum(jax.nn.relu(x)))))(x)
    assert gradient.tolist() == [0, 0, 1]


def masks(program):
    """For each comparison with 0, whether it asks what came out of a ReLU."""
    found = []
    outputs = set()
    for equation in program.jaxpr.eqns:
        name = equation.params.get("name")
        if name == "Relu":
            outputs.add(equation.outvars[0])
        if equation.primitive.name == "custom_jvp_call":
            outputs.clear()  # left as it was
        if name == "Positive" or equation.primitive.name == "gt":
            found.append(equation.invars[0] in outputs)
    return found


def test_the_gradient_of_relu_is_told_by_its_outputs_behind_a_barrier():
    program = for_gpu(jax.grad(network), X)
    assert masks(program) == [True, True]
    barriers = [e for e in equations(program.jaxpr) if e.primitive.name == "optimization_barrier"]
    assert len(barriers) == 2


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.sum(jnp.maximum(x, 0.0)),  # half of the gradient at 0 goes through
        lambda x: jnp.sum(jnp.where(x > 0, x, 0.0)),
        lambda x: jnp.sum(jax.nn.relu6(x)),
        lambda x: jnp.sum(jax.nn.leaky_relu(x)),
        lambda x: jnp.sum(jax.nn.silu(x)),
    ],
)
def test_what_is_no_relu_stays(fn):
    assert str(for_gpu(jax.grad(fn), X)) == str(jax.make_jaxpr(jax.grad(fn))(X))


def test_a_mask_of_something_else_stays():
    program = for_gpu(lambda x, y: jax.nn.relu(x) + (y > 0) + (x > 1), X, X)
    assert [e.primitive.name for e in program.jaxpr.eqns].count("gt") == 2


@pytest.mark.parametrize(
    ("size", "stride", "padding", "groups"),
    [
        ((5, 8), (2, 2), "VALID", 1),
        ((6, 7), (2, 3), ((0, 0), (0, 0)), 1),
        ((6, 7), (3, 2), ((1, 2), (0, 1)), 1),
        ((5, 8), (2, 2), "VALID", 2),
    ],
)
def test_the_gradient_of_a_point_with_strides(size, stride, padding, groups):
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, *size, 4)), jnp.float32)
    kernel = POINT[:, :, : 4 // groups]

    def energy(x):
        options = {"dimension_numbers": NHWC, "feature_group_count": groups}
        return jnp.sum(jnp.sin(lax.conv_general_dilated(x, kernel, stride, padding, **options)))

    program = for_gpu(jax.grad(energy), x)
    assert not any(
        set(e.params["lhs_dilation"]) != {1}
        for e in equations(program.jaxpr)
        if e.primitive.name == "conv_general_dilated"
    )
    with compiling_for("gpu"):
        found = jax.jit(loop_safe(jax.grad(energy)))(x)
    np.testing.assert_allclose(found, jax.grad(energy)(x), atol=1e-5)


def test_larger_kernels_stay():
    def energy(x):
        return jnp.sum(convolve(x, KERNEL, 2))

    assert str(for_gpu(jax.grad(energy), X)) == str(jax.make_jaxpr(jax.grad(energy))(X))


def test_tpus_get_the_program_as_it_is():
    with compiling_for("tpu"):
        program = jax.make_jaxpr(loop_safe(jax.grad(network)))(X)
    assert str(program) == str(jax.make_jaxpr(jax.grad(network))(X))
