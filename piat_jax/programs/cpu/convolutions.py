"""Convolutions in the form that XLA's fast CPU kernels accept everywhere, including in loops.

XLA:CPU converts a gradient's convolutions to the form of its fast kernels only in the entry computation; inside scan,
fori_loop and while_loop the same gradients run 15 to 60 times slower. Here they are written in that form from the
start: channels last in all operands, no dilation of the images, no batch groups.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var

from piat_jax.core.types import Array
from piat_jax.programs.cpu import winograd
from piat_jax.programs.jaxprs import Replacement, is_placed

SPATIAL = 3
"""XLA has kernels for one to three spatial axes."""


def rewritten(equation: Any, definitions: Mapping[Any, Any]) -> Replacement | None:
    """The rule for `conv_general_dilated`; keeps convolutions that XLA's kernels accept as they are, or not at all."""
    given = equation.params
    lhs, rhs = equation.invars
    images, kernel, outputs = lhs.aval, rhs.aval, equation.outvars[0].aval
    spatial = len(images.shape) - 2
    spread = any(d > 1 for d in given["lhs_dilation"])
    # Gradients of plain convolutions never have both dilated images and strides.
    steps = any(d > 1 for d in given["window_strides"])
    if (
        not 1 <= spatial <= SPATIAL
        or (spread and steps)
        or is_placed(equation)
        or 0 in (*images.shape, *kernel.shape, *outputs.shape)
    ):
        return None
    # The gradient by images flips the kernel first. Taking the kernel before the flip avoids a flip outside the loop.
    flip = definitions.get(rhs) if isinstance(rhs, Var) else None
    pixels = set(given["dimension_numbers"].rhs_spec[2:])
    flipped = flip is not None and flip.primitive.name == "rev" and set(flip.params["dimensions"]) == pixels
    inputs: tuple[Any, ...] = (lhs, flip.invars[0] if flip is not None and flipped else rhs)
    convolution = Convolution(
        strides=tuple(given["window_strides"]),
        padding=tuple(map(tuple, given["padding"])),
        lhs_dilation=tuple(given["lhs_dilation"]),
        rhs_dilation=tuple(given["rhs_dilation"]),
        numbers=given["dimension_numbers"],
        groups=given["feature_group_count"],
        batch_groups=given["batch_group_count"],
        precision=given["precision"],
        dtype=given["preferred_element_type"],
        flipped=flipped,
    )
    if convolution.is_minimal(images.dtype):
        for fast in (ByWinograd(convolution.numbers, flipped), KernelByWinograd(convolution.numbers)):
            if fast.applies(images.shape, kernel.shape, convolution.padding):
                return Replacement(fast, inputs)
    return None if convolution.is_plain() else Replacement(convolution, inputs)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """`lax.conv_general_dilated` with these parameters, as plain convolutions.

    With `flipped` its input is the kernel before the flip along all pixel axes.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    numbers: lax.ConvDimensionNumbers
    groups: int
    batch_groups: int
    precision: Any
    dtype: Any
    flipped: bool

    def is_plain(self) -> bool:
        """Whether XLA's kernels accept the convolution unchanged."""
        dimensions = len(self.numbers.lhs_spec)
        orders = _images(self.numbers.lhs_spec), _kernel(self.numbers.rhs_spec), _images(self.numbers.out_spec)
        ordered = all(order == tuple(range(dimensions)) for order in orders)
        return ordered and not self.flipped and self.batch_groups == 1 and set(self.lhs_dilation) == {1}

    def is_minimal(self, dtype: Any) -> bool:
        """Whether it is a float32 convolution without strides, dilation or groups, at default precision."""
        once = {*self.strides, *self.lhs_dilation, *self.rhs_dilation, self.groups, self.batch_groups} == {1}
        default = self.precision in (None, (lax.Precision.DEFAULT, lax.Precision.DEFAULT))
        return once and default and dtype == jnp.float32 and self.dtype in (None, jnp.float32)

    def __call__(self, lhs: Array, rhs: Array) -> Array:
        """The convolution's result, in its own layout."""
        # The barriers keep XLA from folding a transposition, or the flip, back into the convolution.
        images = _ordered(lhs, _images(self.numbers.lhs_spec), barrier=True)
        kernel = _ordered(rhs, _kernel(self.numbers.rhs_spec), barrier=not self.flipped)
        if self.flipped:
            kernel = lax.optimization_barrier(jnp.flip(kernel, range(kernel.ndim - 2)))
        if self.batch_groups > 1:
            images = _groups_as_channels(images, self.batch_groups)
        outputs = self._in_phases(images, kernel)
        return _ordered(outputs, _inverse(_images(self.numbers.out_spec)))

    def _in_phases(self, images: Array, kernel: Array) -> Array:
        """One convolution per phase of the images' dilation, without the zeros of a dilated array."""
        if set(self.lhs_dilation) == {1}:
            return self._plain(images, kernel, self.padding, self.rhs_dilation)
        axes = list(zip(images.shape[1:-1], kernel.shape, self.lhs_dilation, self.rhs_dilation, self.padding))
        sizes, axes = [_outputs(*axis) for axis in axes], [_phases(*axis) for axis in axes]
        dilation = [d // math.gcd(d, spread) for d, spread in zip(self.rhs_dilation, self.lhs_dilation)]
        batch, features = images.shape[0], kernel.shape[-1]
        counts, each = [len(phases) for phases in axes], [phases[0].size for phases in axes]
        found = []
        for phase in itertools.product(*axes):
            taps = kernel[tuple(axis.taps for axis in phase)]
            if 0 in taps.shape:  # a stride larger than the window skips these pixels
                found.append(jnp.zeros((batch, *each, features), self.dtype or images.dtype))
            else:
                found.append(self._plain(images, taps, [axis.padding for axis in phase], dilation))
        # [phases..., B, pixels..., O] to [B, pixel, phase, pixel, phase, ..., O].
        stacked = jnp.stack(found).reshape(*counts, batch, *each, features)
        n = len(counts)
        order = [n, *itertools.chain(*((n + 1 + axis, axis) for axis in range(n))), 2 * n + 1]
        whole = stacked.transpose(order).reshape(batch, *(a * b for a, b in zip(counts, each)), features)
        return whole[(slice(None), *map(slice, sizes))]

    def _plain(
        self, images: Array, kernel: Array, padding: Sequence[tuple[int, int]], dilation: Sequence[int]
    ) -> Array:
        pixels = "DHW"[5 - images.ndim :]
        return lax.conv_general_dilated(
            images,
            kernel,
            self.strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{pixels}C", f"{pixels}IO", f"N{pixels}C"),
            feature_group_count=max(self.groups, self.batch_groups),
            precision=self.precision,
            preferred_element_type=self.dtype,
        )


@dataclasses.dataclass(frozen=True)
class ByWinograd:
    """A 3x3 convolution of stride 1 with many channels, or its gradient by images (programs/cpu/winograd.py)."""

    numbers: lax.ConvDimensionNumbers
    flipped: bool

    def applies(self, lhs: Sequence[int], rhs: Sequence[int], padding: object) -> bool:
        """Whether this applies to operands of these shapes."""
        images, kernel = _images(self.numbers.lhs_spec), _kernel(self.numbers.rhs_spec)
        return winograd.applies(_shape(lhs, images), _shape(rhs, kernel), padding, winograd.CHANNELS)

    def __call__(self, lhs: Array, rhs: Array) -> Array:
        """The convolution's result, in its own layout."""
        images = _ordered(lhs, _images(self.numbers.lhs_spec))
        kernel = _ordered(rhs, _kernel(self.numbers.rhs_spec))
        if self.flipped:
            outputs = winograd.input_gradient(images, kernel.swapaxes(2, 3))
        else:
            outputs = winograd.convolve(images, kernel)
        return _ordered(outputs, _inverse(_images(self.numbers.out_spec)))


@dataclasses.dataclass(frozen=True)
class KernelByWinograd:
    """The gradient of such a convolution by its kernel.

    It is a convolution with the images' channels as batch, a sum over the batch, and the cotangent as a window as large
    as the images.
    """

    numbers: lax.ConvDimensionNumbers

    def applies(self, lhs: Sequence[int], rhs: Sequence[int], padding: object) -> bool:
        """Whether this applies to operands of these shapes."""
        images, cotangent = _shape(lhs, _summed(self.numbers.lhs_spec)), _shape(rhs, _summed(self.numbers.rhs_spec))
        kernel = (3, 3, images[-1], cotangent[-1])
        return images[:-1] == cotangent[:-1] and winograd.applies(images, kernel, padding, winograd.GRADIENT_CHANNELS)

    def __call__(self, lhs: Array, rhs: Array) -> Array:
        """The gradient, in the convolution's layout."""
        images, cotangent = (_ordered(x, _summed(spec)) for x, spec in zip((lhs, rhs), self.numbers))
        gradient = winograd.kernel_gradient(images, cotangent).transpose(2, 0, 1, 3)  # [C, 3, 3, O]
        return _ordered(gradient, _inverse(_images(self.numbers.out_spec)))


class _Phase(NamedTuple):
    """The outputs `s v + a` of an axis, v below `size`: the taps that reach them, and the padding of the images."""

    taps: slice
    padding: tuple[int, int]  # negative to crop the images
    size: int


def _phases(size: int, taps: int, spread: int, dilation: int, padding: tuple[int, int]) -> list[_Phase]:
    """Output o meets tap k at pixel `(o + dilation k - low) / spread` if this is whole: at every `step`-th tap."""
    low = padding[0]
    each = -(-_outputs(size, taps, spread, dilation, padding) // spread)
    step = spread // math.gcd(spread, dilation)
    phases = []
    for a in range(spread):
        first = next((k for k in range(step) if (a + dilation * k - low) % spread == 0), taps)
        count = len(range(first, taps, step))
        before = (low - a - dilation * first) // spread
        window = (count - 1) * (dilation * step // spread) + 1
        phases.append(_Phase(slice(first, None, step), (before, each + window - 1 - size - before), each))
    return phases


def _outputs(size: int, taps: int, spread: int, dilation: int, padding: tuple[int, int]) -> int:
    """The number of outputs along an axis of `size` pixels."""
    return (size - 1) * spread + 1 + sum(padding) - (taps - 1) * dilation


def _groups_as_channels(images: Array, groups: int) -> Array:
    """`[G n, ..., C]` as `[n, ..., G C]`: turns batch groups into channel groups."""
    batch, *pixels, channels = images.shape
    cut = images.reshape(groups, batch // groups, *pixels, channels)
    return jnp.moveaxis(cut, 0, -2).reshape(batch // groups, *pixels, groups * channels)


def _images(spec: Sequence[int]) -> tuple[int, ...]:
    """The axes batch, pixels, channels from a spec (batch, channels, pixels)."""
    return (spec[0], *spec[2:], spec[1])


def _kernel(spec: Sequence[int]) -> tuple[int, ...]:
    """The axes pixels, in, out from a spec (out, in, pixels)."""
    return (*spec[2:], spec[1], spec[0])


def _summed(spec: Sequence[int]) -> tuple[int, ...]:
    """The axes batch, pixels, channels of an operand of the gradient by the kernel, which sums over the batch."""
    return (spec[1], *spec[2:], spec[0])


def _shape(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in order)


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _ordered(x: Array, order: Sequence[int], *, barrier: bool = False) -> Array:
    if tuple(order) == tuple(range(x.ndim)):
        return x
    x = x.transpose(order)
    return lax.optimization_barrier(x) if barrier else x
