"""Rewritten convolutions against the native ones, and the form they have."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from piat_jax.programs.loops import loop_safe

NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def convolution(strides, padding, numbers=NHWC, **options):
    return lambda x, k: lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=numbers, **options)


def value_and_gradients(convolve):
    """Value and both gradients, for a cotangent that differs everywhere."""

    def run(images, kernel):
        value, pull_back = jax.vjp(convolve, images, kernel)
        wave = jnp.sin(1.0 + jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape).astype(value.dtype)
        return value, *pull_back(wave)

    return run


def assert_near(ours, theirs, relative):
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == y.dtype
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, rtol=relative, atol=relative * np.abs(y).max())


def assert_equal(convolve, images, kernel, relative=1e-5):
    run = value_and_gradients(convolve)
    assert_near(jax.jit(loop_safe(run))(images, kernel), jax.jit(run)(images, kernel), relative)


def lowered(fn, *arguments):
    """The lines of a program that are convolutions."""
    return [line for line in jax.jit(fn).lower(*arguments).as_text().splitlines() if "stablehlo.convolution" in line]


def is_plain(line):
    """Whether a convolution of two spatial axes is one that XLA:CPU keeps fast inside loops, and oneDNN takes."""
    layouts = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    return layouts in line and not re.search(r"lhs_dilate = \[[^]]*[2-9]", line) and "batch_group_count = 1 :" in line


PLAIN = [
    ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((8, 5), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((7, 6), (1, 1), (2, 2), ((0, 0), (0, 0))),
    ((5, 7), (1, 1), (1, 1), ((0, 0), (0, 0))),
    ((9, 6), (3, 2), (1, 2), ((2, 0), (0, 1))),
    ((6, 5), (3, 2), (1, 1), ((0, 3), (4, 1))),
    ((5, 8), (2, 1), (1, 3), ((1, 0), (0, 0))),  # columns between the windows
    ((7, 4), (3, 3), (3, 2), ((0, 0), (3, 4))),  # rows no window reaches; more padding than the kernel is wide
]


@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), PLAIN)
@pytest.mark.parametrize("numbers", [NHWC, NCHW, ("NHWC", "OIHW", "NCHW")], ids="-".join)
def test_equals_the_native_convolution(size, kernel, strides, padding, numbers):
    images = normal(2, *size, 3) if numbers[0] == "NHWC" else normal(2, 3, *size)
    weights = normal(*kernel, 3, 4) if numbers[1] == "HWIO" else normal(4, 3, *kernel)
    assert_equal(convolution(strides, padding, numbers), images, weights)


@pytest.mark.parametrize(("stride", "dilation", "low"), list(itertools.product((1, 2, 3, 4), (2, 3, 4), (0, 3))))
def test_dilated_windows(stride, dilation, low):
    options = {"rhs_dilation": (dilation, dilation)}
    convolve = convolution((stride, stride), ((low, dilation), (1, low)), **options)
    assert_equal(convolve, normal(2, 13, 12, 3), normal(3, 3, 3, 4))


@pytest.mark.parametrize(("groups", "stride"), list(itertools.product((2, 3, 6), (1, 2))))
def test_groups_of_channels(groups, stride):
    convolve = convolution((stride, stride), ((1, 1), (1, 1)), feature_group_count=groups)
    assert_equal(convolve, normal(2, 9, 8, 6), normal(3, 3, 6 // groups, 12))


@pytest.mark.parametrize(("strides", "padding"), [((2, 2), "SAME"), ((3, 2), "VALID")])
def test_transposed_convolutions(strides, padding):
    def convolve(x, k):
        return lax.conv_transpose(x, k, strides, padding, dimension_numbers=NHWC)

    assert_equal(convolve, normal(2, 5, 6, 3), normal(3, 4, 3, 5))


def test_one_and_three_spatial_axes():
    convolve = convolution((2,), ((1, 1),), ("NHC", "HIO", "NHC"))
    assert_equal(convolve, normal(3, 11, 4), normal(3, 4, 5))
    convolve = convolution((2, 1, 2), ((1, 1),) * 3, ("NDHWC", "DHWIO", "NDHWC"))
    assert_equal(convolve, normal(2, 5, 6, 7, 3), normal(3, 3, 3, 3, 4))


def test_four_spatial_axes_stay_as_they_are():
    convolve = convolution((1,) * 4, ((1, 1),) * 4, ("N0123C", "0123IO", "N0123C"))
    arguments = jnp.ones((1, 2, 2, 2, 2, 1)), jnp.ones((2, 2, 2, 2, 1, 1))
    run = value_and_gradients(convolve)
    assert lowered(loop_safe(run), *arguments) == lowered(run, *arguments)


def test_bfloat16():
    images, kernel = normal(2, 6, 5, 3, dtype=jnp.bfloat16), normal(3, 3, 3, 4, dtype=jnp.bfloat16)
    assert_equal(convolution((2, 2), ((1, 1), (1, 1))), images, kernel, 3e-2)


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("numbers", [NHWC, NCHW], ids="-".join)
def test_under_vmap(in_axes, numbers):
    images = normal(3, 2, 6, 5, 3) if numbers == NHWC else normal(3, 2, 3, 6, 5)
    kernels = normal(3, 3, 3, 3, 4) if numbers == NHWC else normal(3, 4, 3, 3, 3)
    convolve = jax.vmap(convolution((2, 1), ((1, 1), (1, 1)), numbers), in_axes)
    assert_equal(convolve, images if in_axes[0] == 0 else images[0], kernels if in_axes[1] == 0 else kernels[0])


def test_second_derivatives():
    # What a gradient penalty needs: of the rewritten function, and rewritten itself.
    images, kernel = normal(2, 5, 4, 3), normal(3, 3, 3, 4)
    convolve = convolution((2, 2), ((1, 1), (1, 1)))

    def penalty(fn):
        def energy(x, k):
            return jnp.sum(jnp.sin(fn(x, k)))

        return jax.grad(lambda x, k: jnp.sum(jax.grad(energy)(x, k) ** 2), (0, 1))

    native = jax.jit(penalty(convolve))(images, kernel)
    assert_near(jax.jit(penalty(loop_safe(convolve)))(images, kernel), native, 1e-4)
    assert_near(jax.jit(loop_safe(penalty(convolve)))(images, kernel), native, 1e-4)


@pytest.mark.parametrize(
    ("name", "convolve", "shapes", "count"),
    [
        ("plain", convolution((1, 1), ((1, 1), (1, 1))), ((2, 8, 8, 3), (3, 3, 3, 4)), 3),
        ("strided", convolution((2, 2), ((1, 1), (1, 1))), ((2, 8, 8, 3), (3, 3, 3, 4)), 6),  # in four phases
        ("NCHW", convolution((1, 1), ((1, 1), (1, 1)), NCHW), ((2, 3, 8, 8), (4, 3, 3, 3)), 3),
        (
            "grouped",
            convolution((1, 1), ((1, 1), (1, 1)), feature_group_count=3),
            ((2, 8, 8, 3), (3, 3, 1, 6)),
            3,
        ),
        (
            "dilated",
            convolution((1, 1), ((2, 2), (2, 2)), rhs_dilation=(2, 2)),
            ((2, 8, 8, 3), (3, 3, 3, 4)),
            3,
        ),
        (
            "transposed",
            lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME", dimension_numbers=NHWC),
            ((2, 4, 4, 3), (4, 4, 3, 4)),
            9,
        ),
    ],
)
def test_all_are_plain_after_it(name, convolve, shapes, count):
    del name
    arguments = [jnp.ones(shape) for shape in shapes]
    run = value_and_gradients(convolve)
    lines = lowered(loop_safe(run), *arguments)
    assert len(lines) == count
    assert all(map(is_plain, lines))
    assert not all(map(is_plain, lowered(run, *arguments)))


def test_what_is_plain_stays():
    images, kernel = normal(2, 8, 8, 3), normal(3, 3, 3, 4)
    convolve = convolution((2, 2), ((1, 1), (1, 1)), rhs_dilation=(2, 1))
    assert str(jax.make_jaxpr(loop_safe(convolve))(images, kernel)) == str(jax.make_jaxpr(convolve)(images, kernel))


def test_precision_and_type_are_kept():
    images, kernel = normal(2, 8, 8, 3, dtype=jnp.bfloat16), normal(3, 3, 3, 4, dtype=jnp.bfloat16)
    options = {"precision": lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    convolve = convolution((2, 2), ((1, 1), (1, 1)), **options)
    run = jax.grad(lambda x, k: jnp.sum(convolve(x, k) ** 2), (0, 1))
    ours, theirs = (jax.make_jaxpr(fn)(images, kernel) for fn in (loop_safe(run), run))
    assert [v.aval.dtype for v in ours.jaxpr.outvars] == [v.aval.dtype for v in theirs.jaxpr.outvars]
    lines = lowered(loop_safe(run), images, kernel)
    assert len(lines) == 6
    assert all(line.count("HIGHEST") == 2 for line in lines)


def test_inside_a_mesh_of_checked_axes_it_stays_and_is_right():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    images, kernel = normal(4, 8, 8, 3), normal(3, 3, 3, 4)
    convolve = convolution((2, 2), ((1, 1), (1, 1)))
    gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k))))
    along = jax.sharding.PartitionSpec("data")

    def shared(images, kernel):
        return jax.shard_map(gradient, mesh=mesh, in_specs=(along, jax.sharding.PartitionSpec()), out_specs=along)(
            images, kernel
        )

    np.testing.assert_allclose(jax.jit(loop_safe(shared))(images, kernel), gradient(images, kernel), atol=1e-5)
