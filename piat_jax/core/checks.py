"""Argument checks: one voice, and every message names the argument, the value and the fix."""

import difflib
from collections.abc import Iterable
from typing import TypeGuard

import jax
import numpy as np


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, and what to give instead.

    The commands print it as one line and exit with code 2; from Python it is an ordinary ValueError.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, else the whole list.

    >>> did_you_mean("trade", ["trades", "mart"])
    "; did you mean 'trades'?"
    >>> did_you_mean("zzz", ["trades", "mart"])
    '; choose one of mart, trades'
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; choose one of {', '.join(known)}"


def check_choice(argument: str, value: object, choices: Iterable[object]) -> None:
    """Raise InputError unless `value` is one of `choices`.

    >>> check_choice("norm", "linff", ["linf", "l2"])
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: norm='linff' is unknown; did you mean 'linf'?
    """
    choices = list(choices)
    if value not in choices:
        raise InputError(f"{argument}={value!r} is unknown{did_you_mean(str(value), map(str, choices))}")


def check_range(argument: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise InputError unless every element of a concrete `value` lies in [low, high], or (low, high].

    Traced values pass: they have no value yet. NaN never passes.

    >>> check_range("eps", 8, 0, 1, open_low=True)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: eps=8 must be in (0, 1]; did you mean 8/255?
    """
    if not _is_concrete(value):
        return
    above = np.greater(value, low) if open_low else np.greater_equal(value, low)
    if np.all(above & np.less_equal(value, high)):
        return
    interval = f"{'(' if open_low else '['}{low:g}, {high:g}]"
    pixels = argument.rpartition(".")[2] in ("eps", "start_eps") and high == 1
    radius = pixels and isinstance(value, (int, float)) and 1 < value <= 255
    raise InputError(f"{argument}={value} must be in {interval}" + (f"; did you mean {value:g}/255?" if radius else ""))


def check_share(argument: str, value: object) -> None:
    """Raise InputError unless a concrete `value` is a share of the run, in [0, 1].

    >>> check_share("start", 10)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: start=10 must be a share of the run in [0, 1]; for epoch 10 of 200 give 10/200
    """
    if _is_concrete(value) and not np.all(np.greater_equal(value, 0) & np.less_equal(value, 1)):
        raise InputError(f"{argument}={value} must be a share of the run in [0, 1]; for epoch 10 of 200 give 10/200")


def check_at_least(argument: str, value: object, low: float) -> None:
    """Raise InputError unless a concrete `value` is at least `low`.

    >>> check_at_least("steps", 0, 1)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: steps=0 must be at least 1
    """
    if _is_concrete(value) and not np.all(np.greater_equal(value, low)):
        raise InputError(f"{argument}={value} must be at least {low:g}")


def check_radius(argument: str, value: object, norm: str) -> None:
    """Raise InputError unless a concrete `value` is a radius in pixel units: in [0, 1] for "linf", else at least 0.

    >>> check_radius("eps", 8, "linf")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: eps=8 must be in [0, 1]; did you mean 8/255?
    """
    if norm == "linf":
        check_range(argument, value, 0, 1)
    else:
        check_at_least(argument, value, 0)


def _is_concrete(value: object) -> TypeGuard[float]:
    """Whether `value` is a number or an array of numbers that is there to look at; a traced one is not."""
    if isinstance(value, jax.Array):
        try:
            np.asarray(value)
        except jax.errors.TracerArrayConversionError:
            return False
        return True
    return isinstance(value, (int, float, np.ndarray, np.generic))


def check_images(argument: str, images: object) -> None:
    """Raise InputError unless `images` has four axes and is of floating point."""
    ndim = getattr(images, "ndim", None)
    if ndim != 4:
        raise InputError(f"{argument} has {ndim} axes; give images as [batch, height, width, channels]")
    if not np.issubdtype(images.dtype, np.floating) and str(images.dtype) != "bfloat16":  # type: ignore[attr-defined]
        raise InputError(f"{argument} has dtype {images.dtype}; give floats in [0, 1] (uint8 / 255)")  # type: ignore[attr-defined]


def check_patches(images: object, patch_size: int) -> None:
    """Raise InputError unless square patches of so many pixels a side cover `images[B, H, W, C]` exactly."""
    height, width = images.shape[1:3]  # type: ignore[attr-defined]
    if height % patch_size or width % patch_size:
        raise InputError(f"patch_size={patch_size} does not divide images of {height}x{width} pixels")
