"""3x3 convolutions with 2.25 times fewer multiplications: Winograd's minimal filtering F(2x2, 3x3), for CPUs.

Two by two outputs Y are computed together, from the four by four inputs d that they see and the kernel g:

    Y = A^T [(G g G^T) * (B^T d B)] A

(Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, equation 8). Summed over channels, the
product in the middle is a matrix product for each of the 16 places in a tile; the transforms beside it cost little
where channels are many (experiments/throughput/NOTES.md). It rounds differently from a direct convolution.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from piat_jax.core.types import Array

CHANNELS, GRADIENT_CHANNELS = 256, 128
"""From so many on, in and out, it is faster: by images and forward, and by the kernel."""
PADDING = ((1, 1), (1, 1))
A_T = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
B_T = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def applies(
    images: Array, kernel: tuple[int, ...], strides: object, padding: object, precision: object, channels: int
) -> bool:
    """Whether the convolution can be done this way, has so many channels, and may be rounded differently."""
    asked = precision if precision is not None else jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return (
        asked in (None, lax.Precision.DEFAULT, "default", "fastest")
        and images.dtype == jnp.float32
        and kernel[:2] == (3, 3)
        and min(kernel[2:]) >= channels
        and strides == (1, 1)
        and padding == PADDING
        and images.shape[1] % 2 == images.shape[2] % 2 == 0
    )


def convolve(images: Array, kernel: Array) -> Array:
    """`[B, H, W, C]` and `[3, 3, C, O]` to `[B, H, W, O]`: stride 1, padding 1, H and W even."""
    return _convolve(images, kernel, B_T, A_T, contracted=2)


def input_gradient(cotangent: Array, kernel: Array) -> Array:
    """The gradient of `sum(cotangent * convolve(images, kernel))` by the images, `[B, H, W, C]`."""
    # The flipped kernel has the same places in another order, so the transform of the forward serves here too.
    flip = [3, 1, 2, 0]
    return _convolve(cotangent, kernel, B_T[flip], A_T[:, flip], contracted=3)


def _convolve(images: Array, kernel: Array, b_t: np.ndarray, a_t: np.ndarray, *, contracted: int) -> Array:
    tiles = _input_tiles(images, b_t)  # [4, 4, B, H/2, W/2, C]: a tile's column, its row, ...
    rows = _combine(list(kernel), G, 0)
    places = _combine([rows[:, j] for j in range(3)], G, 0)  # [4, 4, C, O]
    products = lax.dot_general(_flat(tiles), places, (((3,), (contracted,)), ((0, 1), (0, 1))))
    columns = _combine(list(products.reshape(*tiles.shape[:-1], -1)), a_t, 4)  # [4, B, H/2, W/2, 2, O]
    return lax.optimization_barrier(_combine(list(columns), a_t, 2).reshape(*images.shape[:-1], -1))


def kernel_gradient(images: Array, cotangent: Array) -> Array:
    """The gradient of `sum(cotangent * convolve(images, kernel))` by the kernel, `[3, 3, C, O]`."""
    batch, height, width, features = cotangent.shape
    pairs = lax.optimization_barrier(cotangent).reshape(batch, height // 2, 2, width // 2, 2, features)
    rows = _combine([pairs[:, :, i] for i in range(2)], A_T.T, 0)
    outputs = _combine([rows[:, :, :, :, j] for j in range(2)], A_T.T, 0)
    places = lax.dot_general(_flat(_input_tiles(images, B_T)), _flat(outputs), (((2,), (2,)), ((0, 1), (0, 1))))
    return _combine(list(_combine(list(places), G.T, 1)), G.T, 0)


def _input_tiles(images: Array, b_t: np.ndarray) -> Array:
    """`B^T d B` of every tile."""
    # The barriers, here and around the other transforms, keep XLA from computing again for each of the 16 places what
    # comes before, or for each of its uses what comes out.
    padded = lax.optimization_barrier(jnp.pad(images, ((0, 0), *PADDING, (0, 0))))
    _, height, width, _ = images.shape
    rows = _combine([padded[:, i : i + height - 1 : 2] for i in range(4)], b_t, 0)
    return lax.optimization_barrier(_combine([rows[:, :, :, j : j + width - 1 : 2] for j in range(4)], b_t, 0))


def _combine(parts: Sequence[Array], matrix: np.ndarray, axis: int) -> Array:
    """The matrix times the parts, its rows along a new axis: sums that XLA fuses, as it would not fuse a product."""
    shape = [1] * (parts[0].ndim + 1)
    shape[axis] = -1
    return sum(
        (column.reshape(shape) * jnp.expand_dims(part, axis) for column, part in zip(matrix.T, parts, strict=True)),
        start=jnp.zeros((), parts[0].dtype),
    )


def _flat(tiles: Array) -> Array:
    return tiles.reshape(4, 4, -1, tiles.shape[-1])
