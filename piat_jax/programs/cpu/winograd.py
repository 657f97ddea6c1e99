"""3x3 convolutions with four times fewer multiplications: Winograd's minimal filtering F(4x4, 3x3), for CPUs.

It computes four by four outputs Y together, from the six by six inputs d that they depend on and the kernel g:

    Y = A^T [(G g G^T) * (B^T d B)] A

(Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, equation 8). Summed over channels, the
elementwise product is a matrix product for each of the 36 positions in a tile; the transforms cost little if there are
many channels (experiments/results/throughput/NOTES.md).

The three matrices convert polynomials to their values at six points and back (Toom and Cook). Lavin and Gray's points,
0, 1, -1, 2, -2 and infinity, have an error of 3.4e-6 in float32; a direct convolution has 1e-7, and the points used
here 1.5e-6 (standard normal images and kernels, 256 channels). They are also closed under 1/p, the points at which a
flipped kernel has the same values.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from piat_jax.core.types import Array

CHANNELS, GRADIENT_CHANNELS = 64, 32
"""The least input and output channels from which it is faster: forward and gradient by images, gradient by kernel."""
PADDING = ((1, 1), (1, 1))
TILE = 4
"""Outputs per tile along each axis."""
PIECE = 1 << 19
"""Array entries of images to transform at a time: together with their transforms they fit into the cache."""
LARGE = 1 << 16
"""For kernels with more channels, in times out, reading the kernel for each piece costs more than pieces save."""
POINTS = np.array([0, 3 / 2, -3 / 2, 2 / 3, -2 / 3])  # and infinity
INVERSE = [5, 3, 4, 1, 2, 0]  # the positions of 1/p


def _values(coefficients: int) -> np.ndarray:
    """The matrix from coefficients to values at the points; the value at infinity is the highest coefficient."""
    return np.vstack([np.vander(POINTS, coefficients, increasing=True), np.eye(coefficients)[-1]])


# With the kernel's values divided by |p|, a flipped kernel has the same values in the order of 1/p.
_SCALE = np.array([1, *(1 / abs(POINTS[1:])), 1])[:, None]
G = _SCALE * _values(3)
A_T = _values(TILE).T
B_T = np.round(np.linalg.inv(_values(TILE + 2)).T / _SCALE, 12)  # rounding makes zeros exact


def applies(images: Sequence[int], kernel: Sequence[int], padding: object, channels: int) -> bool:
    """Whether this works for a convolution of stride 1 with these shapes, and it has at least `channels` channels."""
    return (
        tuple(kernel[:2]) == (3, 3)
        and len(images) == 4
        and min(kernel[2:]) >= channels
        and padding == PADDING
        and images[1] % TILE == images[2] % TILE == 0
    )


# Jitted, so that it is traced once per shape; its hundreds of sums took half the time of tracing a network.
@jax.jit
def convolve(images: Array, kernel: Array) -> Array:
    """`[B, H, W, C]` and `[3, 3, C, O]` to `[B, H, W, O]`: stride 1, padding 1, H and W divisible by the tile."""
    return _convolve(images, kernel, B_T, A_T, contracted=2)


@jax.jit
def input_gradient(cotangent: Array, kernel: Array) -> Array:
    """The gradient of `sum(cotangent * convolve(images, kernel))` by the images, `[B, H, W, C]`."""
    # The flipped kernel has the same values in another order, so the forward's transform is reused.
    return _convolve(cotangent, kernel, B_T[INVERSE], A_T[:, INVERSE], contracted=3)


def _convolve(images: Array, kernel: Array, b_t: np.ndarray, a_t: np.ndarray, *, contracted: int) -> Array:
    rows = _combine(list(kernel), G, 0)
    places = _combine([rows[:, j] for j in range(3)], G, 0)  # [6, 6, C, O]

    def convolve(piece: Array) -> Array:
        tiles = _input_tiles(piece, b_t)  # [6, 6, B, H/4, W/4, C]: a tile's column, its row, ...
        products = lax.dot_general(_flat(tiles), places, (((3,), (contracted,)), ((0, 1), (0, 1))))
        columns = _combine(list(products.reshape(*tiles.shape[:-1], -1)), a_t, 4)  # [6, B, H/4, W/4, 4, O]
        return _combine(list(columns), a_t, 2).reshape(*piece.shape[:-1], -1)

    pieces = _cut(images, _pieces(images, kernel.shape))

    def advance(number: Array, outputs: Array) -> Array:
        return lax.dynamic_update_index_in_dim(outputs, convolve(pieces[:, number]), number, 1)

    features = kernel.shape[5 - contracted]
    outputs = lax.fori_loop(0, pieces.shape[1], advance, jnp.zeros((*pieces.shape[:-1], features), images.dtype))
    return outputs.reshape(*images.shape[:-1], features)


@jax.jit
def kernel_gradient(images: Array, cotangent: Array) -> Array:
    """The gradient of `sum(cotangent * convolve(images, kernel))` by the kernel, `[3, 3, C, O]`."""
    shape = (3, 3, images.shape[-1], cotangent.shape[-1])
    count = _pieces(images, shape)
    seen, wanted = _cut(images, count), _cut(lax.optimization_barrier(cotangent), count)

    def advance(number: Array, places: Array) -> Array:
        inputs, outputs = _input_tiles(seen[:, number], B_T), _output_tiles(wanted[:, number])
        return places + lax.dot_general(_flat(inputs), _flat(outputs), (((2,), (2,)), ((0, 1), (0, 1))))

    places = lax.fori_loop(0, count, advance, jnp.zeros((TILE + 2, TILE + 2, *shape[2:]), images.dtype))
    return _combine(list(_combine(list(places), G.T, 1)), G.T, 0)


def _pieces(images: Array, kernel: tuple[int, ...]) -> int:
    """The number of equal pieces to cut the images into."""
    if math.prod(kernel[2:]) > LARGE:
        return 1
    batch = images.shape[0]
    return max(n for n in range(1, batch + 1) if n == 1 or (batch % n == 0 and images.size >= n * PIECE))


def _cut(images: Array, count: int) -> Array:
    """`[B, ...]` as `[B / n, n, ...]`: each of n pieces has images from the whole batch, which may be sharded."""
    return images.reshape(-1, count, *images.shape[1:])


def _output_tiles(cotangent: Array) -> Array:
    """`A d A^T` of every tile of the outputs."""
    batch, height, width, features = cotangent.shape
    cut = cotangent.reshape(batch, height // TILE, TILE, width // TILE, TILE, features)
    rows = _combine([cut[:, :, i] for i in range(TILE)], A_T.T, 0)
    return _combine([rows[:, :, :, :, j] for j in range(TILE)], A_T.T, 0)


def _input_tiles(images: Array, b_t: np.ndarray) -> Array:
    """`B^T d B` of every tile."""
    padded = lax.optimization_barrier(jnp.pad(images, ((0, 0), *PADDING, (0, 0))))
    _, height, width, _ = images.shape
    places = range(TILE + 2)
    rows = _combine([padded[:, i : i + height - TILE + 1 : TILE] for i in places], b_t, 0)
    columns = [rows[:, :, :, j : j + width - TILE + 1 : TILE] for j in places]
    return _combine(columns, b_t, 0)


def _combine(parts: Sequence[Array], matrix: np.ndarray, axis: int) -> Array:
    """The matrix times the parts, with rows along a new axis, written as sums, which XLA fuses, unlike a product."""
    sums = [sum(number * part for number, part in zip(map(float, row), parts, strict=True) if number) for row in matrix]
    # The barriers, here and before the first of two transforms, keep XLA from recomputing inputs for each of the 36
    # positions, and outputs for each use.
    return lax.optimization_barrier(jnp.stack(sums, axis))


def _flat(tiles: Array) -> Array:
    return tiles.reshape(TILE + 2, TILE + 2, -1, tiles.shape[-1])
