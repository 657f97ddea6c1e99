"""Rewrites that XLA's compiler for GPUs does not find by itself."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from piat_jax.core.types import Array
from piat_jax.programs.jaxprs import Replacement, is_placed


@dataclasses.dataclass(frozen=True)
class Relu:
    """`max(x, 0)`, behind a barrier: otherwise XLA computes `x > 0` from x, and keeps x in addition to the outputs."""

    def __call__(self, x: Array) -> Array:
        """The larger of x and 0."""
        return lax.optimization_barrier(jnp.maximum(x, jnp.zeros((), x.dtype)))


@dataclasses.dataclass(frozen=True)
class Positive:
    """The mask of ReLU's gradient, computed from its outputs."""

    def __call__(self, y: Array) -> Array:
        """`y > 0`."""
        return y > jnp.zeros((), y.dtype)


def relu(equation: Any, definitions: Mapping[Any, Any]) -> Replacement | None:
    """The rule for `custom_jvp_call`: `jax.nn.relu`, which with bias and residual becomes one cuDNN kernel."""
    del definitions
    return Replacement(Relu(), tuple(equation.invars)) if _is_relu(equation) else None


def mask(equation: Any, definitions: Mapping[Any, Any]) -> Replacement | None:
    """The rule for `gt`: `x > 0` if the ReLU of x already exists."""
    x, zero = equation.invars
    if not (isinstance(zero, Literal) and zero.val == 0):
        return None
    for before in definitions.values():
        if _is_relu(before) and before.invars[0] is x:
            return Replacement(Positive(), (before.outvars[0],))
    return None


def _is_relu(equation: Any) -> bool:
    """Whether the equation is a custom derivative around a jitted `relu` that computes `max(x, 0)`."""
    if equation.primitive.name != "custom_jvp_call":
        return False
    (call, *others) = equation.params["call_jaxpr"].jaxpr.eqns or [None]
    if others or call is None or call.params.get("name") != "relu":
        return False
    (largest, *others) = call.params["jaxpr"].jaxpr.eqns
    zero = any(isinstance(variable, Literal) and variable.val == 0 for variable in largest.invars)
    return not others and largest.primitive.name == "max" and zero


@dataclasses.dataclass(frozen=True)
class SpreadOut:
    """The gradient by images of a 1x1 convolution with strides: computed at the pixels it reads, and 0 in between.

    XLA dilates the gradient first, so that the convolution writes an array of mostly zeros, and the next kernel reads
    it.
    """

    numbers: lax.ConvDimensionNumbers
    options: tuple[tuple[str, Any], ...]
    lhs_dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    def __call__(self, lhs: Array, rhs: Array) -> Array:
        """The convolution's result."""
        strides = (1,) * len(self.padding)
        outputs = lax.conv_general_dilated(
            lhs, rhs, strides, [(0, 0)] * len(strides), dimension_numbers=self.numbers, **dict(self.options)
        )
        config = [(0, 0, 0)] * outputs.ndim
        for axis, (low, high), spread in zip(self.numbers.out_spec[2:], self.padding, self.lhs_dilation, strict=True):
            config[axis] = (low, high, spread - 1)
        return lax.pad(outputs, jnp.zeros((), outputs.dtype), config)


def convolution(equation: Any, definitions: Mapping[Any, Any]) -> Replacement | None:
    """The rule for `conv_general_dilated`: 1x1 kernels over dilated images."""
    del definitions
    given = equation.params
    numbers = given["dimension_numbers"]
    kernel: Sequence[int] = equation.invars[1].aval.shape
    if (
        set(given["lhs_dilation"]) == {1}
        or any(kernel[axis] != 1 for axis in numbers.rhs_spec[2:])
        or set(given["window_strides"]) != {1}
        or given["batch_group_count"] != 1
        or is_placed(equation)
    ):
        return None
    options = tuple((name, given[name]) for name in ("feature_group_count", "precision", "preferred_element_type"))
    padding = tuple(map(tuple, given["padding"]))
    spread = SpreadOut(numbers, options, tuple(given["lhs_dilation"]), padding)
    return Replacement(spread, tuple(equation.invars))


RULES = {"custom_jvp_call": relu, "gt": mask, "conv_general_dilated": convolution}
"""Rewrite rules by primitive name (programs/jaxprs.py)."""
