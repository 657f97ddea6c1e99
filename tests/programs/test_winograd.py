"""Winograd's convolution against a direct one in float64, and when it is chosen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from piat_jax.core.checks import InputError
from piat_jax.core.forward import forward_flop
from piat_jax.core.sharding import data_mesh
from piat_jax.models import create
from piat_jax.programs.cpu import winograd
from piat_jax.programs.loops import loop_safe
from tests.processors import OLDER_EMITTER

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(height, width, channels, features):
    rng = np.random.default_rng(0)
    shapes = (3, height, width, channels), (3, 3, channels, features), (3, height, width, features)
    return [rng.normal(size=shape) for shape in shapes]


def direct(images, kernel):
    """The sum over the nine taps."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = images.shape[1:3]
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


@pytest.mark.parametrize("size", [(4, 4), (8, 4), (4, 12)])
def test_values_and_kernel_gradients(size):
    images, kernel, cotangent = arrays(*size, 5, 3)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [[padded[:, i : i + size[0], j : j + size[1]] for j in range(3)] for i in range(3)]
    gradient = np.array([[np.einsum("bhwc,bhwo->co", tap, cotangent) for tap in row] for row in taps])
    single = [jnp.asarray(x, jnp.float32) for x in (images, kernel, cotangent)]
    np.testing.assert_allclose(jax.jit(winograd.convolve)(*single[:2]), direct(images, kernel), atol=2e-5)
    np.testing.assert_allclose(jax.jit(winograd.kernel_gradient)(single[0], single[2]), gradient, atol=5e-5)


def test_pieces_of_a_batch_make_the_same(monkeypatch):
    monkeypatch.setattr(winograd, "PIECE", 2 * 8 * 4 * 6)  # two images, of six
    rng = np.random.default_rng(1)
    shapes = (6, 8, 4, 6), (3, 3, 6, 7), (6, 8, 4, 7)
    images, kernel, cotangent = (rng.normal(size=shape) for shape in shapes)
    single = [jnp.asarray(x, jnp.float32) for x in (images, kernel, cotangent)]
    assert winograd._pieces(single[0], kernel.shape) == 3
    atol = 5e-5 if OLDER_EMITTER else 2e-5
    np.testing.assert_allclose(winograd.convolve(*single[:2]), direct(images, kernel), atol=atol)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    np.testing.assert_allclose(winograd.input_gradient(single[2], single[1]), direct(cotangent, flipped), atol=3e-5)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [[padded[:, i : i + 8, j : j + 4] for j in range(3)] for i in range(3)]
    gradient = np.array([[np.einsum("bhwc,bhwo->co", tap, cotangent) for tap in row] for row in taps])
    np.testing.assert_allclose(winograd.kernel_gradient(single[0], single[2]), gradient, atol=5e-5)


def test_devices_that_share_a_batch_keep_their_images(monkeypatch):
    monkeypatch.setattr(winograd, "PIECE", 8 * 4 * 4 * 3)
    split = NamedSharding(data_mesh(8), PartitionSpec("data"))
    images = cotangent = jax.ShapeDtypeStruct((16, 4, 4, 3), jnp.float32, sharding=split)
    assert winograd._pieces(images, (3, 3, 3, 3)) == 2
    forward = jax.jit(winograd.convolve).lower(images, jnp.ones((3, 3, 3, 3))).compile().as_text()
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", forward)
    backward = jax.jit(winograd.kernel_gradient).lower(images, cotangent).compile().as_text()
    assert re.findall("all-gather|all-reduce(?=\\()|all-to-all|collective-permute", backward) == ["all-reduce"]


@pytest.mark.parametrize(
    ("shape", "features", "pieces"),
    [((128, 32, 32, 64), 64, 16), ((64, 32, 32, 64), 128, 8), ((127, 32, 32, 64), 64, 1), ((128, 4, 4, 512), 512, 1)],
)
def test_into_how_many_pieces(shape, features, pieces):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert winograd._pieces(images, (3, 3, shape[-1], features)) == pieces


def test_the_points_leave_a_small_error():
    # 1.5e-6 with jax 0.12, 0.9e-6 with 0.10; the points 0, 1, -1, 2, -2 leave 3.4e-6 and 1.8e-6, a direct one 1e-7.
    single = [jnp.asarray(x, jnp.float32) for x in arrays(8, 8, 256, 16)[:2]]
    exact = direct(*(np.asarray(x, np.float64) for x in single))
    assert np.std(winograd.convolve(*single) - exact) < 1.7e-6 * np.std(exact)


def products(fn, *arguments):
    """How many matrix products and convolutions a function consists of."""
    lines = jax.jit(loop_safe(fn)).lower(*arguments).as_text().splitlines()
    return tuple(sum(f"stablehlo.{kind}" in line for line in lines) for kind in ("dot_general", "convolution"))


def convolution(images, kernel, stride=1, **options):
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=NHWC, **options
    )


def gradients(images, kernel):
    return jax.grad(lambda x, k: jnp.sum(convolution(x, k) ** 2), (0, 1))(images, kernel)


def test_many_channels_take_it_and_agree():
    images, kernel, _ = (jnp.asarray(x, jnp.float32) for x in arrays(8, 4, 64, 64))
    assert products(convolution, images, kernel) == (1, 0)
    assert products(gradients, images, kernel) == (3, 0)

    def native(x, k):
        return jnp.sum(lax.conv_general_dilated(x, k, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NHWC) ** 2)

    for ours, theirs in zip(
        jax.jit(loop_safe(gradients))(images, kernel), jax.jit(jax.grad(native, (0, 1)))(images, kernel)
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(jnp.max(jnp.abs(theirs))))


def test_the_kernel_gradient_takes_it_earlier():
    images, kernel, _ = (jnp.asarray(x, jnp.float32) for x in arrays(4, 4, 32, 32))
    assert products(gradients, images, kernel) == (1, 2)


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((6, 4, 64, 64), jnp.float32, {}),  # rows, columns that are no tile
        ((4, 6, 64, 64), jnp.float32, {}),
        ((4, 4, 63, 64), jnp.float32, {}),
        ((4, 4, 64, 63), jnp.float32, {}),
        ((4, 4, 64, 64), jnp.bfloat16, {}),
        ((4, 4, 64, 64), jnp.float32, {"stride": 2}),
        ((4, 4, 64, 64), jnp.float32, {"precision": lax.Precision.HIGHEST}),
    ],
)
def test_anything_else_is_direct(shape, dtype, options):
    images, kernel, _ = (jnp.asarray(x, dtype) for x in arrays(*shape))
    assert products(lambda x, k: convolution(x, k, **options), images, kernel) == (0, 1)


def test_operations_are_counted_as_those_of_direct_convolutions():
    model = create("small_resnet", num_classes=10, width=64, stage_sizes=(1,), stem_stride=1)
    taps = (3 * 8 - 2) ** 2  # of all pixels of an axis of eight, without those in the padding
    multiplications = taps * (64 + 2 * 64 * 64) + 64 * 10
    assert forward_flop(model, (8, 8, 1)) == pytest.approx(2 * multiplications, rel=0.05)


def test_operations_are_counted_on_a_cpu(monkeypatch):
    """XLA counts those of other devices only after optimising, and not in cuDNN's convolutions."""
    counted, cpu = [], jax.devices()[3]
    monkeypatch.setattr(jax, "local_devices", lambda backend: {"cpu": [cpu]}[backend])
    monkeypatch.setattr(
        jax.stages.Lowered, "cost_analysis", lambda _: {"flops": counted.append(jax.config.jax_default_device) or 7}
    )
    assert forward_flop(create("small_resnet", num_classes=10, width=2, stage_sizes=(1,)), (8, 8, 1)) == 7
    assert counted == [cpu]

    def missing(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", missing)
    with pytest.raises(InputError, match="JAX_PLATFORMS"):
        forward_flop(create("small_resnet", num_classes=10, width=2, stage_sizes=(1,)), (8, 8, 1))


def test_what_is_asked_to_be_precise_is_direct():
    images, kernel, _ = (jnp.asarray(x, jnp.float32) for x in arrays(4, 4, 64, 64))
    with jax.default_matmul_precision("highest"):
        assert products(convolution, images, kernel) == (0, 1)
