import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from piat_jax.programs.cpu.convolutions import loop_safe_conv_general_dilated as loop_safe

NHWC = ("NHWC", "HWIO", "NHWC")


def native(images, kernel, strides, padding, **options):
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=NHWC, **options)


def arrays(height, width, kernel, batch=2, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    images, weights = rng.normal(size=(batch, height, width, 3)), rng.normal(size=(*kernel, 3, 4))
    return jnp.asarray(images, dtype), jnp.asarray(weights, dtype)


def value_and_gradients(conv, strides, padding):
    """Value and both gradients, for a cotangent that differs everywhere."""

    def run(images, kernel):
        value, pull_back = jax.vjp(lambda x, k: conv(x, k, strides, padding), images, kernel)
        wave = jnp.sin(1.0 + jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape).astype(value.dtype)
        return value, *pull_back(wave)

    return run


def assert_near(ours, theirs, relative):
    for x, y in zip(ours, theirs):
        assert x.dtype == y.dtype
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, rtol=relative, atol=relative * np.abs(y).max())


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [
        ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ((8, 5), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((7, 6), (1, 1), (2, 2), ((0, 0), (0, 0))),
        ((5, 7), (1, 1), (1, 1), ((0, 0), (0, 0))),
        ((9, 6), (3, 2), (1, 2), ((2, 0), (0, 1))),
        ((6, 5), (3, 2), (1, 1), ((0, 3), (4, 1))),
        ((5, 8), (2, 1), (1, 3), ((1, 0), (0, 0))),  # columns between the windows
        ((7, 4), (3, 3), (3, 2), ((0, 0), (3, 4))),  # rows no window reaches; more padding than the kernel is wide
    ],
)
def test_equals_the_native_convolution(size, kernel, strides, padding):
    arguments = arrays(*size, kernel)
    ours = jax.jit(value_and_gradients(loop_safe, strides, padding))(*arguments)
    theirs = jax.jit(value_and_gradients(native, strides, padding))(*arguments)
    assert_near(ours, theirs, 1e-5)


def test_bfloat16():
    arguments = arrays(6, 5, (3, 3), dtype=jnp.bfloat16)
    ours = jax.jit(value_and_gradients(loop_safe, (2, 2), ((1, 1), (1, 1))))(*arguments)
    theirs = jax.jit(value_and_gradients(native, (2, 2), ((1, 1), (1, 1))))(*arguments)
    assert ours[0].dtype == jnp.bfloat16
    assert_near(ours, theirs, 3e-2)


def test_inside_loops_and_under_vmap():
    padding = ((1, 1), (1, 1))
    images, kernel = arrays(5, 4, (3, 3), batch=6)
    ours, theirs = (value_and_gradients(conv, (2, 2), padding) for conv in (loop_safe, native))
    expected = jax.jit(theirs)(images, kernel)

    @jax.jit
    def looped(images, kernel):
        zero = jax.tree.map(jnp.zeros_like, expected)
        return lax.fori_loop(
            0, 2, lambda i, total: jax.tree.map(lambda a, b: a + b * i, total, ours(images, kernel)), zero
        )

    assert_near(looped(images, kernel), expected, 1e-5)
    # One kernel each, and one set of images each.
    kernels, sets = jnp.stack([kernel, 2 * kernel]), images.reshape(2, 3, 5, 4, 3)
    assert_near(jax.jit(jax.vmap(ours))(sets, kernels), jax.jit(jax.vmap(theirs))(sets, kernels), 1e-5)
    assert_near(
        jax.jit(jax.vmap(ours, (None, 0)))(images, kernels), jax.jit(jax.vmap(theirs, (None, 0)))(images, kernels), 1e-5
    )


def test_second_derivatives():
    # What a gradient penalty needs, and what tracing through an attack asks for.
    images, kernel = arrays(5, 4, (3, 3))

    def penalty(conv):
        def energy(x, k):
            return jnp.sum(jnp.sin(conv(x, k, (2, 2), ((1, 1), (1, 1)))))

        return jax.jit(jax.grad(lambda x, k: jnp.sum(jax.grad(energy)(x, k) ** 2), (0, 1)))

    assert_near(penalty(loop_safe)(images, kernel), penalty(native)(images, kernel), 1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (1, 2)},
        {"feature_group_count": 3},
        {"padding": "SAME"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_not_plain_goes_to_the_native_convolution(options):
    images, kernel = arrays(7, 6, (3, 3))
    if "feature_group_count" in options:
        kernel = jnp.concatenate([kernel[:, :, :1]] * 3, axis=3)
    options = {"padding": ((1, 1), (1, 1)), **options}
    ours = loop_safe(images, kernel, (1, 1), **options)
    np.testing.assert_array_equal(ours, native(images, kernel, (1, 1), **options))


def test_other_layouts():
    images, kernel = arrays(5, 4, (3, 3))
    arguments = (1, 2), ((1, 1), (0, 1))
    expected = native(images, kernel, *arguments)
    for numbers in (NHWC, lax.conv_dimension_numbers(images.shape, kernel.shape, NHWC)):
        np.testing.assert_array_equal(loop_safe(images, kernel, *arguments, dimension_numbers=numbers), expected)
    ours = loop_safe(images.transpose(0, 3, 1, 2), kernel, *arguments, dimension_numbers=("NCHW", "HWIO", "NHWC"))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stride", "count"), [(1, 3), (2, 6)])  # a stride's gradient by images in four phases
def test_the_gradients_are_written_as_plain_convolutions(stride, count):
    # The form XLA:CPU keeps fast inside loops, and oneDNN takes: NHWC in and out, images never spread out, never a
    # batch or feature count above one.
    images, kernel = arrays(8, 8, (3, 3))
    run = jax.jit(value_and_gradients(loop_safe, (stride, stride), ((1, 1), (1, 1))))
    lines = [line for line in run.lower(images, kernel).as_text().splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == count
    for line in lines:
        assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line
        assert "lhs_dilate = [2" not in line
        assert "batch_group_count = 1 : i64, feature_group_count = 1 : i64" in line
