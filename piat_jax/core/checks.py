"""Argument checks with uniform messages, each of which names the argument, its value and the fix."""

import difflib
import sys
from collections.abc import Iterable
from typing import TypeGuard

import numpy as np


class SavedAndStopped(Exception):
    """Work was asked to stop and has saved its progress."""


class InputError(ValueError):
    """An input that cannot be used; the message names the input and what to give instead.

    Commands print the message as one line and exit with code 2; in Python it is an ordinary ValueError.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, else a list of all names.

    >>> did_you_mean("trade", ["trades", "mart"])
    "; did you mean 'trades'?"
    >>> did_you_mean("zzz", ["trades", "mart"])
    '; choose one of mart, trades'
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near.sort(
        key=lambda other: (difflib.SequenceMatcher(None, other, name).ratio(), other[:1] == name[:1]), reverse=True
    )
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

    Traced values pass, because they have no value yet. NaN never passes.

    >>> check_range("eps", 8, 0, 1, open_low=True)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: eps=8 must be in (0, 1]; did you mean 8/255?
    """
    _check_number(argument, value)
    if not _is_concrete(value):
        return
    above = np.greater(value, low) if open_low else np.greater_equal(value, low)
    if np.all(above & np.less_equal(value, high)):
        return
    interval = f"{'(' if open_low else '['}{low:g}, {high:g}]"
    pixels = argument.rpartition(".")[2] in ("eps", "start_eps", "step_size") and high == 1
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
    _check_number(argument, value)
    if _is_concrete(value) and not np.all(np.greater_equal(value, low)):
        raise InputError(f"{argument}={value} must be at least {low:g}")


def check_count(argument: str, value: object, low: int) -> None:
    """Raise InputError unless `value` is a whole number and, if concrete, at least `low`.

    >>> check_count("steps", 2.5, 1)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: steps=2.5 must be a whole number of at least 1
    """
    if isinstance(value, bool) or not (
        isinstance(value, int) or np.issubdtype(getattr(value, "dtype", str), np.integer)
    ):
        raise InputError(f"{argument}={value!r} must be a whole number of at least {low}")
    check_at_least(argument, value, low)


def check_seed(argument: str, value: object) -> None:
    """Raise InputError unless `value` is a whole number of 32 bits; of others JAX uses only the lowest 32 bits.

    >>> check_seed("seed", 2**32)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: seed=4294967296 must be in [0, 4294967295]; JAX would take it for 0
    """
    check_count(argument, value, -sys.maxsize)
    if _is_concrete(value) and not 0 <= int(value) < 2**32:
        raise InputError(f"{argument}={value} must be in [0, {2**32 - 1}]; JAX would take it for {int(value) % 2**32}")


def check_radius(argument: str, value: object, norm: str, box: tuple[float, float] | None = (0.0, 1.0)) -> None:
    """Raise InputError unless a concrete `value` is a radius in the pixels' unit.

    Under "linf" a radius is at most the width of the box. In other norms any number from 0 on is allowed, because the
    box limits the ball. Without a box a radius is at most 1e15, whose square still fits float32.

    >>> check_radius("eps", 8, "linf")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: eps=8 must be in [0, 1]; did you mean 8/255?
    >>> check_radius("eps", 8, "linf", (0.0, 255.0))
    """
    if box is None:
        check_range(argument, value, 0, 1e15)
    elif norm == "linf":
        check_range(argument, value, 0, box[1] - box[0])
    else:
        check_at_least(argument, value, 0)


def check_box(box: object) -> None:
    """Raise InputError unless `box` is None or two numbers, the lower first.

    >>> check_box((1.0, 0.0))
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: box=(1.0, 0.0) must be None or (low, high) with low < high; pixels are in (0, 1)
    """
    if box is None:
        return
    ends = np.asarray(box)
    if ends.shape != (2,) or not np.issubdtype(ends.dtype, np.number) or not -np.inf < ends[0] < ends[1] < np.inf:
        raise InputError(f"box={box} must be None or (low, high) with low < high; pixels are in (0, 1)")


def _check_number(argument: str, value: object) -> None:
    if isinstance(value, str):
        raise InputError(f"{argument}={value!r} is text; give a number")


def _is_concrete(value: object) -> TypeGuard[float]:
    """Whether `value` is a number or an array with known values, not a traced one."""
    import jax  # not at the top: commands read their flags before JAX is loaded

    if isinstance(value, jax.Array):
        try:
            np.asarray(value)
        except jax.errors.TracerArrayConversionError:
            return False
        return True
    return isinstance(value, (int, float, np.ndarray, np.generic))


def check_images(argument: str, images: object, box: tuple[float, float] | None = (0.0, 1.0)) -> None:
    """Raise InputError unless `images` has four axes and a floating-point dtype, with concrete pixels in `box`.

    >>> check_images("images", np.full((1, 2, 2, 3), 128.0))
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: images range from 128 to 128; give pixels in [0, 1] and normalise inside logits_fn
    """
    ndim = getattr(images, "ndim", None)
    if ndim is None:
        order = "; the order is (logits_fn, images, labels)" if callable(images) else ""
        raise InputError(f"{argument} is {described(images)}; give an array [batch, height, width, channels]{order}")
    if ndim != 4:
        raise InputError(f"{argument} has {ndim} axes; give images as [batch, height, width, channels]")
    if not np.issubdtype(images.dtype, np.floating) and str(images.dtype) != "bfloat16":  # type: ignore[attr-defined]
        raise InputError(f"{argument} has dtype {images.dtype}; give floats in [0, 1] (uint8 / 255)")  # type: ignore[attr-defined]
    if box is not None and _is_concrete(images) and np.size(images):
        check_pixels(argument, images, *box)


def check_pixels(argument: str, images: object, low: float = 0.0, high: float = 1.0) -> None:
    """Raise InputError unless all pixels of concrete images lie in [low, high].

    >>> check_pixels("images", np.float32([0.0, 1.0000001]))
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: images range from 0 to 1.00000012; rounding left [0, 1]: give images.clip(0, 1)
    """
    pixels = np.asarray(images)  # jnp.min would be traced for an array that a jitted function closes over
    least, most = float(pixels.min()), float(pixels.max())
    if low <= least <= most <= high:
        return
    slack = 1e-3 * (high - low)
    if low - slack <= least <= most <= high + slack:
        fix = f"rounding left [{low:g}, {high:g}]: give {argument}.clip({low:g}, {high:g})"
    else:
        fix = f"give pixels in [{low:g}, {high:g}] and normalise inside logits_fn"
    raise InputError(f"{argument} range from {least:.9g} to {most:.9g}; {fix}")


def check_labels(argument: str, labels: object, logits: object) -> None:
    """Raise InputError unless `labels` are integers `[B]` for `logits[B, K]`, concrete ones in [0, K).

    >>> check_labels("labels", np.array([3, 10]), np.zeros((2, 10)))
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: labels range from 3 to 10; with the 10 classes of the logits they must be in [0, 9]
    """
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2:
        raise InputError(f"logits are {'of shape ' + str(shape) if shape else type(logits).__name__}; give [B, K]")
    dtype, given = getattr(labels, "dtype", None), getattr(labels, "shape", None)
    if dtype is None or not np.issubdtype(dtype, np.integer):
        raise InputError(
            f"{argument} are {dtype or type(labels).__name__}; give an array of integers, one class index each"
        )
    if given != shape[:1]:
        raise InputError(f"{argument} have shape {given}; give one for each of the {shape[0]} rows of logits, [B]")
    if _is_concrete(labels) and shape[0]:
        check_classes(argument, labels, shape[1])


def check_array(argument: str, value: object) -> None:
    """Raise InputError unless `value` is an array; lists and numbers are not.

    >>> check_array("labels", [1, 0])
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: labels is a list of 2; give an array: numpy.asarray(labels)
    """
    if not hasattr(value, "ndim"):
        raise InputError(f"{argument} is {described(value)}; give an array: numpy.asarray({argument})")


def check_classes(argument: str, labels: object, classes: int) -> None:
    """Raise InputError unless all concrete labels are in [0, classes)."""
    given = np.asarray(labels)
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{argument} range from {low} to {high}; with the {classes} classes of the logits they must be in "
            f"[0, {classes - 1}]"
        )


def check_key(key: object) -> None:
    """Raise InputError unless `key` is a typed jax.random key.

    >>> check_key(0)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: key=0 is not a key; give jax.random.key(0)
    """
    import jax

    if not isinstance(key, jax.Array) or not jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise InputError(f"key={key!r} is not a key; give jax.random.key({key if isinstance(key, int) else 0})")


def described(value: object) -> str:
    """A value in a few words for a message: an array's type and shape, a short number or text, or a type's name.

    >>> described(np.zeros((2, 3))), described(3), described(None), described((1, 2))
    ('an array float64[2, 3]', '3', 'None', 'a tuple of 2')
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"an array {dtype}{list(shape)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value) if len(repr(value)) <= 60 else f"{a_(type(value).__name__)} of {len(repr(value))} characters"
    if isinstance(value, (tuple, list, dict)):
        return f"{a_(type(value).__name__)} of {len(value)}"
    return a_(type(value).__name__)


def a_(noun: str) -> str:
    """A noun with its article.

    >>> a_("Wrapper"), a_("AttackedObjective")
    ('a Wrapper', 'an AttackedObjective')
    """
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def check_patches(images: object, patch_size: int) -> None:
    """Raise InputError unless square patches with sides of `patch_size` pixels cover `images[B, H, W, C]` exactly."""
    height, width = images.shape[1:3]  # type: ignore[attr-defined]
    if height % patch_size or width % patch_size:
        raise InputError(f"patch_size={patch_size} does not divide images of {height}x{width} pixels")
