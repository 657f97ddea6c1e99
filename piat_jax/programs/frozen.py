"""A network with fixed weights, as attacks see it: values that do not depend on the images are computed once."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from piat_jax.core.network_checks import checked_logits
from piat_jax.core.types import Array, LogitsFn

SMALL = 1 << 16
"""Values with up to this many entries are kept between calls even if they are larger than their inputs."""


def frozen(logits_fn: LogitsFn, images: Array) -> LogitsFn:
    """`logits_fn` for images of this shape, optimised for many calls with the same weights, such as in a loop.

    Values that depend only on the weights are computed here, once. If such values shift and scale a convolution's
    outputs per channel, as BatchNorm does in evaluation mode, the scale is folded into the kernel and the shift becomes
    a bias:

        (k * x - mean) scale + shift  =  (k scale) * x + (shift - mean scale)

    On a GPU, convolution, bias, residual and ReLU then become one kernel (programs/gpu.py). Logits and gradients change
    only by rounding. For images of another shape or type, the result calls the original function.

    Args:
      logits_fn: images `[B, H, W, C]` to logits; any function that JAX can trace.
      images: an array of this shape; its values are not used.

    >>> weights = jnp.eye(4)
    >>> logits_fn = frozen(lambda x: x.reshape(-1, 4) @ (2 * weights), jnp.zeros((1, 2, 2, 1)))
    >>> logits_fn(jnp.ones((1, 2, 2, 1))).tolist()
    [[2.0, 2.0, 2.0, 2.0]]
    """
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    program, result = jax.make_jaxpr(functools.partial(checked_logits, logits_fn), return_shape=True)(shape)
    structure = jax.tree.structure(result)
    plan = _Plan()
    source = _Slot(1)
    outputs = plan.walk(program.jaxpr, [_Known(value) for value in program.consts], [source])

    def call(images: Array) -> Any:
        if (images.shape, images.dtype) != (shape.shape, shape.dtype):
            return logits_fn(images)
        return structure.unflatten(plan.run(source, images, outputs))

    return call


@dataclasses.dataclass(eq=False)
class _Known:
    """A value that depends on no image; `wide` is the value before rounding to a type with fewer bits."""

    value: Any
    wide: Any = None


@dataclasses.dataclass(eq=False)
class _Slot:
    """A value that depends on the images, and the number of equations that use it."""

    uses: int


@dataclasses.dataclass(eq=False)
class _Affine(_Slot):
    """A deferred `scale * convolution + shift` in `dtype`; scale and shift are per channel."""

    equation: Any
    image: _Slot
    kernel: _Known
    scale: Any
    shift: Any
    dtype: Any
    done: _Slot | None = None  # the computed value, once it was needed


Value = _Known | _Slot


class _Plan:
    """The steps from images to logits, each `(inputs, function, outputs)`."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[Value], Callable[..., Sequence[Any]], list[_Slot]]] = []

    def run(self, source: _Slot, images: Array, outputs: list[Value]) -> list[Any]:
        """Compute the outputs for these images."""
        values: dict[_Slot, Any] = {source: images}

        def read(value: Value) -> Any:
            return value.value if isinstance(value, _Known) else values[value]

        for inputs, fn, slots in self.steps:
            values.update(zip(slots, fn(*map(read, inputs)), strict=True))
        return list(map(read, outputs))

    def walk(self, jaxpr: Any, consts: Sequence[Value], arguments: Sequence[Value]) -> list[Value]:
        """Add a program's equations to the plan; returns its outputs."""
        values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
        uses: dict[Any, int] = {}
        for variable in [v for equation in jaxpr.eqns for v in equation.invars] + jaxpr.outvars:
            if not isinstance(variable, Literal):
                uses[variable] = uses.get(variable, 0) + 1

        for variable in jaxpr.invars:
            if uses.get(variable, 0) > 1:  # the caller counts a single use, but there are several inside
                values[variable] = self._settled(values[variable])

        def read(variable: Any) -> Value:
            return _Known(variable.val) if isinstance(variable, Literal) else values[variable]

        for equation in jaxpr.eqns:
            inputs = [read(variable) for variable in equation.invars]
            found = self._equation(equation, inputs, [uses.get(v, 0) for v in equation.outvars])
            values.update(zip(equation.outvars, found, strict=True))
        return [self._settled(read(variable)) for variable in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Value], uses: list[int]) -> Sequence[Value]:
        name = equation.primitive.name
        known = all(isinstance(value, _Known) for value in inputs)
        if known and not equation.effects and not _grows(equation):
            return _compute(equation, inputs)
        if name in ("jit", "pjit", "closed_call"):
            inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            return self.walk(inner.jaxpr, [_Known(value) for value in inner.consts], inputs)
        if name == "conv_general_dilated" and isinstance(inputs[1], _Known):
            image = self._settled(inputs[0])
            assert isinstance(image, _Slot)
            return [_Affine(uses[0], equation, image, inputs[1], None, None, equation.outvars[0].aval.dtype)]
        if (folded := _fold(equation, inputs, sum(uses))) is not None:
            return [folded]
        inputs = [self._settled(value) for value in inputs]
        return self._step(inputs, lambda *values: _bind(equation, values), uses)

    def _step(self, inputs: list[Value], fn: Callable[..., Sequence[Any]], uses: Sequence[int]) -> list[_Slot]:
        outputs = [_Slot(count) for count in uses]
        self.steps.append((inputs, fn, outputs))
        return outputs

    def _settled(self, value: Value) -> Value:
        """Add a deferred convolution to the steps now; other values are returned unchanged."""
        if not isinstance(value, _Affine):
            return value
        if value.done is not None:
            return value.done
        equation, dtype = value.equation, value.dtype
        channel = equation.params["dimension_numbers"].out_spec[1]
        kernel, bias = value.kernel.value, None
        if value.scale is not None:
            wide = kernel if value.kernel.wide is None else value.kernel.wide
            features = equation.params["dimension_numbers"].rhs_spec[0]
            kernel = (wide * _along(value.scale, features, np.ndim(wide))).astype(kernel.dtype)
        if value.shift is not None:
            bias = _along(value.shift, channel, len(equation.outvars[0].aval.shape))
            bias = bias.astype(equation.outvars[0].aval.dtype)

        def convolve(image: Array) -> list[Array]:
            (outputs,) = _bind(equation, [image, kernel])
            outputs = outputs if bias is None else outputs + bias
            return [outputs.astype(dtype)]

        (value.done,) = self._step([value.image], convolve, [value.uses])
        return value.done


def _fold(equation: Any, inputs: list[Value], uses: int) -> _Affine | None:
    """Fold an equation into a deferred convolution if it shifts or scales channels, or converts the dtype."""
    name = equation.primitive.name
    places = [place for place, value in enumerate(inputs) if isinstance(value, _Affine) and value.uses == 1]
    if len(places) != 1:
        return None
    place = places[0]
    before: Any = inputs[place]
    dtype = equation.outvars[0].aval.dtype
    if name == "convert_element_type" and jnp.issubdtype(dtype, jnp.floating):
        return dataclasses.replace(before, uses=uses, dtype=dtype)
    known: Any = inputs[1 - place] if len(inputs) == 2 else None
    if name not in ("add", "sub", "mul", "div") or not isinstance(known, _Known):
        return None
    channel = before.equation.params["dimension_numbers"].out_spec[1]
    other = _per_channel(known.value, channel, equation.outvars[0].aval.shape)
    if other is None or (place == 1 and name in ("sub", "div")):
        return None
    scale, shift = before.scale, before.shift
    if name in ("mul", "div"):
        factor = other if name == "mul" else 1 / other
        scale = factor if scale is None else scale * factor
        shift = None if shift is None else shift * factor
    else:
        term = other if name == "add" else -other
        shift = term if shift is None else shift + term
    return dataclasses.replace(before, uses=uses, scale=scale, shift=shift, dtype=dtype)


def _per_channel(value: Any, channel: int, shape: Sequence[int]) -> Array | None:
    """The value as `[C]` if it varies only along the channels, else None."""
    sizes = np.shape(value)
    if sizes == ():
        return jnp.broadcast_to(value, shape[channel])
    if len(sizes) != len(shape) or any(size != 1 for axis, size in enumerate(sizes) if axis != channel):
        return None
    return jnp.broadcast_to(jnp.reshape(value, -1), shape[channel])


def _along(values: Array, axis: int, dimensions: int) -> Array:
    return values.reshape([-1 if a == axis else 1 for a in range(dimensions)])


def _grows(equation: Any) -> bool:
    """Whether the outputs are large and larger than the inputs, and so better recomputed than kept."""
    inputs, outputs = (
        sum(int(np.prod(variable.aval.shape)) for variable in variables)
        for variables in (equation.invars, equation.outvars)
    )
    return outputs > max(inputs, SMALL)


def _compute(equation: Any, inputs: Sequence[Any]) -> list[_Known]:
    values = _bind(equation, [value.value for value in inputs])
    wide = None
    if equation.primitive.name == "convert_element_type":
        before = inputs[0].value if inputs[0].wide is None else inputs[0].wide
        if jnp.issubdtype(jnp.result_type(before), jnp.floating):
            wide = before
    elif equation.primitive.name == "copy":
        wide = inputs[0].wide
    return [_Known(value, wide) for value in values]


def _bind(equation: Any, values: Sequence[Any]) -> Sequence[Any]:
    with equation.ctx.manager:
        found = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
    return found if equation.primitive.multiple_results else [found]
