"""Loops with bodies rewritten for the platform, and the function that rewrites a body."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from piat_jax.programs import cpu, gpu
from piat_jax.programs.jaxprs import rewrite
from piat_jax.programs.platform import platform

C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])
RULES = {"cpu": cpu.RULES, "gpu": gpu.RULES}
"""Rewrite rules by platform; a TPU's compiler needs none."""


def loop_safe(fn: F) -> F:
    """The same function, rewritten so that the platform's compiler makes it fast in the body of a loop.

    On a CPU, XLA converts convolutions, above all those of gradients, to the form of its fast kernels only outside
    loops; in `scan`, `fori_loop` and `while_loop` they run 10 to 60 times slower. This function rewrites the traced
    program of `fn`, so it works for convolutions from any library. On a GPU, ReLU's gradient uses its outputs, so that
    convolution, bias, residual and ReLU can be one kernel, and no activation is stored twice. On a TPU the result is
    `fn`. Values change only by rounding. Take gradients inside `fn`, so that they can be rewritten too.

    This library's attacks and training loop already do this. Use it for your own loops.

    Args:
      fn: a function that returns arrays; arrays among its arguments are traced, other arguments are passed unchanged.

    >>> import jax.numpy as jnp
    >>> @loop_safe
    ... def step(x, _):
    ...     return x - 0.1 * jax.grad(lambda x: jnp.sum(x**2))(x), None
    >>> round(float(jax.lax.scan(step, jnp.array(1.0), length=2)[0]), 2)
    0.64
    """

    @functools.wraps(fn)
    def safe(*arguments: Any, **keywords: Any) -> Any:
        rules = RULES.get(platform())
        if rules is None:
            return fn(*arguments, **keywords)
        leaves, structure = jax.tree.flatten((arguments, keywords))
        traced = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]

        def of_arrays(*arrays: Any) -> Any:
            rest = iter(arrays)
            arguments, keywords = structure.unflatten(
                next(rest) if is_array else leaf for leaf, is_array in zip(leaves, traced, strict=True)
            )
            return fn(*arguments, **keywords)

        arrays = [leaf for leaf, is_array in zip(leaves, traced, strict=True) if is_array]
        program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        program = program.replace(jaxpr=rewrite(program.jaxpr, rules))
        return jax.tree.structure(shapes).unflatten(jaxpr_as_fun(program)(*arrays))

    return safe  # type: ignore[return-value]


def fori_loop(lower: Any, upper: Any, body: Callable[[Any, C], C], init: C) -> C:
    """`jax.lax.fori_loop` with a `loop_safe` body."""
    return jax.lax.fori_loop(lower, upper, loop_safe(body), init)


def while_loop(condition: Callable[[C], Any], body: Callable[[C], C], init: C) -> C:
    """`jax.lax.while_loop` with a `loop_safe` body."""
    return jax.lax.while_loop(condition, loop_safe(body), init)
