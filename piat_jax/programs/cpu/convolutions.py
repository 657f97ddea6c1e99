"""A convolution whose gradients are as fast inside a loop as outside one on CPU."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from piat_jax.core.types import Array
from piat_jax.programs.cpu import winograd

Padding = tuple[tuple[int, int], tuple[int, int]]
NHWC = ("NHWC", "HWIO", "NHWC")


def loop_safe_conv_general_dilated(
    images: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """`lax.conv_general_dilated` for NHWC images, with both gradients written as ordinary NHWC convolutions.

    XLA:CPU brings the transposed convolutions of a gradient into the form its fast kernels take only in the entry
    computation; inside scan, fori_loop and while_loop the same gradients run 15 to 60 times slower. Written in that
    form from the start they are fast anywhere. Values and gradients equal the native ones up to rounding.

    Args:
      images: `[B, H, W, C]`.
      kernel: `[h, w, C, O]`.
      window_strides: two ints.
      padding: two pairs of ints.
      lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count: as Flax passes them, NHWC where None; only
        plain, ungrouped and undilated NHWC convolutions take the fast path, everything else goes to the native one.
      precision: as in lax.

    Returns:
      `[B, H', W', O]`.
    """
    numbers = NHWC if dimension_numbers is None and images.ndim == 4 else dimension_numbers
    plain = (
        images.ndim == 4
        and _is_nhwc(images, kernel, numbers)
        and feature_group_count == 1
        and all(d == 1 for d in (*(lhs_dilation or (1,)), *(rhs_dilation or (1,))))
        and not isinstance(padding, str)
    )
    if not plain:
        return lax.conv_general_dilated(
            images,
            kernel,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            numbers,
            feature_group_count=feature_group_count,
            precision=precision,
        )
    (top, bottom), (left, right) = padding
    return _conv(images, kernel, tuple(window_strides), ((top, bottom), (left, right)), precision)


def _is_nhwc(images: Array, kernel: Array, numbers: Any) -> bool:
    shapes = images.shape, kernel.shape
    return lax.conv_dimension_numbers(*shapes, numbers) == lax.conv_dimension_numbers(*shapes, NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(images: Array, kernel: Array, strides: tuple[int, int], padding: Padding, precision: Any) -> Array:
    if winograd.applies(images, kernel.shape, strides, padding, precision, winograd.CHANNELS):
        return winograd.convolve(images, kernel)
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=NHWC, precision=precision)


def _forward(
    images: Array, kernel: Array, strides: tuple[int, int], padding: Padding, precision: Any
) -> tuple[Array, tuple[Array, Array]]:
    return _conv(images, kernel, strides, padding, precision), (images, kernel)


def _backward(
    strides: tuple[int, int], padding: Padding, precision: Any, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    images, kernel = residuals
    return (
        _input_gradient(cotangent, kernel, images.shape, strides, padding, precision),
        _kernel_gradient(cotangent, images, kernel.shape, strides, padding, precision),
    )


_conv.defvjp(_forward, _backward)


def _input_gradient(
    cotangent: Array, kernel: Array, shape: tuple[int, ...], strides: tuple[int, int], padding: Padding, precision: Any
) -> Array:
    """The cotangent convolved with the flipped kernel (in and out channels swapped), one phase of the stride at a time.

    Pixel `s v + a` of the input meets only every s-th tap of the kernel: s^2 small convolutions without the zeros that
    spreading the cotangent out by the stride would bring in.
    """
    if winograd.applies(cotangent, kernel.shape, strides, padding, precision, winograd.CHANNELS):
        return winograd.input_gradient(cotangent, kernel)
    # The barrier keeps XLA from folding the flip back into a transposed convolution.
    flipped = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    rows, columns = (
        _phases(shape[axis + 1], cotangent.shape[axis + 1], kernel.shape[axis], strides[axis], padding[axis][0])
        for axis in (0, 1)
    )

    def phase(row: _Phase, column: _Phase) -> Array:
        taps = flipped[row.taps, column.taps]
        if 0 in taps.shape:  # a stride beyond the window: these pixels are not looked at
            return jnp.zeros((shape[0], row.size, column.size, shape[3]), cotangent.dtype)
        pads = (row.padding, column.padding)
        return _conv(cotangent, taps, (1, 1), pads, precision)

    phases = jnp.stack([jnp.stack([phase(row, column) for column in columns], 3) for row in rows], 2)
    interleaved = phases.reshape(shape[0], rows[0].size * len(rows), columns[0].size * len(columns), shape[3])
    return interleaved[:, : shape[1], : shape[2]]


class _Phase(NamedTuple):
    """The pixels `s v + a` of an axis, v below `size`: with which taps of the flipped kernel they are reached."""

    taps: slice
    padding: tuple[int, int]  # of the cotangent; negative where it is cropped
    size: int


def _phases(size: int, cotangent: int, window: int, stride: int, low: int) -> list[_Phase]:
    phases = []
    each = -(-size // stride)
    for a in range(stride):
        shift, first = divmod(a + low, stride)
        taps = len(range(first, window, stride))
        # Tap `first + s j` meets the cotangent's pixel `v + shift - j`.
        before = taps - 1 - shift
        phases.append(
            _Phase(
                slice((window - 1 - first) % stride, window - first, stride), (before, each + shift - cotangent), each
            )
        )
    return phases


def _kernel_gradient(
    cotangent: Array, images: Array, shape: tuple[int, ...], strides: tuple[int, int], padding: Padding, precision: Any
) -> Array:
    """The images correlated with the cotangent."""
    if winograd.applies(images, shape, strides, padding, precision, winograd.GRADIENT_CHANNELS):
        return winograd.kernel_gradient(images, cotangent)
    # Channels act as the batch, the batch as the channels.
    channels_first = lax.optimization_barrier(images.transpose(3, 1, 2, 0))  # [C, H, W, B]
    window = lax.optimization_barrier(cotangent.transpose(1, 2, 0, 3))  # [H', W', B, O]
    pads = []
    for axis in (0, 1):
        size, stride, (low, _) = images.shape[axis + 1], strides[axis], padding[axis]
        spread = (cotangent.shape[axis + 1] - 1) * stride + 1
        pads.append((low, shape[axis] - 1 + spread - size - low))
    gradient = lax.conv_general_dilated(
        channels_first, window, (1, 1), pads, rhs_dilation=strides, dimension_numbers=NHWC, precision=precision
    )
    return gradient.transpose(1, 2, 0, 3)
