"""Proposals of the Square Attack: the share of pixels to change, the windows, and their new contents.

All functions work on batches, and the window side is traced, so the whole schedule compiles once. Draws are uniform
numbers `[B, n]`, one row per example.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.norms import project_l1
from piat_jax.core.types import Array

# The iterations, 0-based, at which the share of pixels is halved.
HALVED_AT = (11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)


def pixel_share(
    iteration: Array | int, queries: Array | int, p_init: Array | float, rescale_schedule: bool = False
) -> Array:
    """The share of the pixels that a window covers at this iteration: `p_init / 2^k`, k the halvings so far.

    >>> float(pixel_share(60, 5000, 0.8)), float(pixel_share(60, 500, 0.8, rescale_schedule=True))
    (0.20000000298023224, 0.02500000037252903)
    """
    halved_at = np.asarray(HALVED_AT, np.int32)
    if rescale_schedule:
        # ceil(halved_at * queries / 10000), split so that int32 does not overflow.
        whole, rest = queries // 10000, queries % 10000
        halved_at = halved_at * whole - (-halved_at * rest) // 10000
    halvings = jnp.sum(iteration >= halved_at)
    return jnp.asarray(p_init, jnp.float32) * jnp.asarray(0.5 ** np.arange(len(HALVED_AT) + 1), jnp.float32)[halvings]


def window_side(share: Array, shape: tuple[int, ...], norm: str) -> Array:
    """The side of a window with this share of an image `[H, W, C]`, int32; except under "linf" odd and at least 3.

    >>> [int(window_side(jnp.float32(0.4), (32, 32, 3), norm)) for norm in ("linf", "l2")]
    [20, 21]
    """
    height, width = shape[:2]
    side = jnp.round(jnp.sqrt(share * (height * width))).astype(jnp.int32)
    if norm != "linf":
        side = jnp.maximum(side, 3)
        side = side + 1 - side % 2
    return jnp.clip(side, 1, min(height, width))


def length(x: Array, norm: str, axes: tuple[int, ...]) -> Array:
    """The "l1" or "l2" norm over `axes`, keeping them with length 1."""
    if norm == "l1":
        return jnp.sum(jnp.abs(x), axes, keepdims=True)
    return jnp.sqrt(jnp.sum(x * x, axes, keepdims=True))


def tile(side: Array | int, room: int, norm: str) -> Array:
    """eta(side), the bump that the paper's l2 attack writes into a window, in a corner of zeros `[room, room]`.

    Its upper `side // 2` rows hold a positive pyramid, the others a negative one. A pixel at Chebyshev distance d from
    the pyramid's centre has mass `sum_{k = d .. side // 2} 1 / (k + 1)^2`. The halves have equal norm, and the bump has
    norm 1.
    """
    tails = jnp.asarray(np.pi**2 / 6 - np.cumsum([0.0, *1 / np.arange(1.0, room + 2) ** 2]), jnp.float32)
    row, column = jnp.arange(room)[:, None], jnp.arange(room)[None]
    upper = side // 2
    top = row < upper
    middle = jnp.where(top, upper // 2, upper + (side - upper) // 2)
    # In float32: of integers, XLA for GPUs (jax 0.11.2) takes the larger of `row - middle` itself and the other.
    along, across = (jnp.abs(apart.astype(jnp.float32)) for apart in (row - middle, column - upper))
    distance = jnp.maximum(along, across).astype(jnp.int32)
    mass = jnp.where((row < side) & (column < side), tails[distance] - tails[upper + 1], 0.0)
    halves = [_unit(jnp.where(half, mass, 0.0), norm, (0, 1)) for half in (top, ~top)]
    return _unit(halves[0] - halves[1], norm, (0, 1))


def stripes(draws: Array, shape: tuple[int, ...]) -> Array:
    """The "linf" start: vertical stripes of -1 and 1, `[B, 1, W, C]`, from `draws[B, W * C]`."""
    return _sign(draws).reshape(-1, 1, *shape[1:])


def square(draws: Array, side: Array, shape: tuple[int, ...]) -> Array:
    """The "linf" change: -1 or 1 for each channel inside one window, 0 outside, from `draws[B, 2 + C]`."""
    inside = _window(*_corner(draws[:, 0], draws[:, 1], side, shape), side, shape)
    return jnp.where(inside, _sign(draws[:, None, None, 2:]), 0.0)


def tiling_side(shape: tuple[int, ...]) -> int:
    """The side of the tiles of `tiling`: a fifth of the image."""
    return max(min(shape[:2]) // 5, 1)


def tiling_draws(shape: tuple[int, ...]) -> int:
    """The number of draws that `tiling` needs."""
    side = tiling_side(shape)
    return (shape[0] // side) * (shape[1] // side) * (shape[2] + 1)


def tiling(draws: Array, shape: tuple[int, ...], norm: str) -> Array:
    """The "l2" and "l1" start: a tiling by bumps with random orientation, and a random sign in each channel."""
    height, width, channels = shape
    side = tiling_side(shape)
    offset = max(min(height, width) - 5 * side, 0) // 2
    rows, columns = height // side, width // side
    # An extra row and column of zeros stands for all pixels that no tile covers.
    draws = draws.reshape(-1, rows, columns, channels + 1)
    signs = jnp.pad(_sign(draws[..., 1:]), ((0, 0), (0, 1), (0, 1), (0, 0)))
    turned = jnp.pad(draws[..., :1] < 0.5, ((0, 0), (0, 1), (0, 1), (0, 0)))
    row, column = (np.arange(n) - offset for n in (height, width))
    of_row = np.where(row < 0, rows, np.minimum(row // side, rows))[:, None]
    of_column = np.where(column < 0, columns, np.minimum(column // side, columns))[None]
    bump = tile(side, side, norm)
    straight = bump[(row % side)[:, None], (column % side)[None]][..., None]
    other = bump[(column % side)[None], (row % side)[:, None]][..., None]
    return jnp.where(turned[:, of_row, of_column], other, straight) * signs[:, of_row, of_column]


def move_mass(draws: Array, delta: Array, eps: Array, side: Array, norm: str) -> Array:
    """The "l2" and "l1" change: moves a second window's perturbation, and unused eps, into a bump in the first window.

    Args:
      draws: `[B, 5 + C]`: the two corners, the orientation of the bump and its sign in each channel.
      delta: the perturbation, `[B, H, W, C]`.
      eps: the radius, `[B, 1, 1, 1]`.
      side: side of both windows.
      norm: "l2" or "l1".
    """
    shape = delta.shape[1:]
    height, width, channels = shape
    top, left = _corner(draws[:, 0], draws[:, 1], side, shape)
    first = _window(top, left, side, shape)
    second = _window(*_corner(draws[:, 2], draws[:, 3], side, shape), side, shape)
    room = min(height, width)
    bump = tile(side, room, norm)
    # A slice of the padded bump is the bump at the position of the window.
    bumps = jnp.pad(jnp.stack([bump, bump.T]), ((0, 0), (height, height - room), (width, width - room)))
    place = jax.vmap(lambda turn, i, j: jax.lax.dynamic_slice(bumps, (turn, i, j), (1, height, width))[0])
    moved = place((draws[:, 4] < 0.5).astype(jnp.int32), height - top, width - left)[..., None]

    inside = jnp.where(first, delta, 0.0)
    own = length(inside, norm, (1, 2))
    union = length(jnp.where(first | second, delta, 0.0), norm, (1, 2))
    whole = length(delta, norm, (1, 2, 3))
    if norm == "l1":
        budget = jnp.maximum(eps - whole, 0.0) / channels + union
    else:
        budget = jnp.sqrt(jnp.maximum(eps**2 - whole**2, 0.0) / channels + union**2)
    new = moved * _sign(draws[:, None, None, 5:]) + inside / (own + 1e-12)
    new = new * budget / (length(new, norm, (1, 2)) + 1e-12)
    # Where the windows overlap, the first one wins.
    return jnp.where(first, new, jnp.where(second, 0.0, delta))


def into_ball_and_box(images: Array, delta: Array, eps: Array, norm: str) -> Array:
    """`images` perturbed by about `delta`: "l2" scales it to eps, then clips; "l1" projects onto both at once."""
    if norm == "l2":
        moved = eps * delta / (length(delta, norm, (1, 2, 3)) + 1e-12)
    else:
        moved = project_l1(delta, eps.reshape(-1), images)
    return jnp.clip(images + moved, 0.0, 1.0)


def draws_for(shape: tuple[int, ...], norm: str) -> tuple[int, int]:
    """The numbers of uniform draws for a start and for a change."""
    if norm == "linf":
        return math.prod(shape[1:]), 2 + shape[2]
    return tiling_draws(shape), 5 + shape[2]


def _corner(row: Array, column: Array, side: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    # As in the reference code, the last position, H - side, is never drawn unless it is the only one.
    room = (jnp.asarray(size - side).astype(row.dtype) for size in shape[:2])
    top, left = (draw * size for draw, size in zip((row, column), room))
    return jnp.floor(top).astype(jnp.int32), jnp.floor(left).astype(jnp.int32)


def _window(top: Array, left: Array, side: Array, shape: tuple[int, ...]) -> Array:
    row = jnp.arange(shape[0])[None, :, None] - top[:, None, None]
    column = jnp.arange(shape[1])[None, None] - left[:, None, None]
    return ((row >= 0) & (row < side) & (column >= 0) & (column < side))[..., None]


def _sign(draws: Array) -> Array:
    return jnp.where(draws < 0.5, -1.0, 1.0)


def _unit(x: Array, norm: str, axes: tuple[int, ...]) -> Array:
    size = length(x, norm, axes)
    return x / jnp.where(size > 0, size, 1.0)
