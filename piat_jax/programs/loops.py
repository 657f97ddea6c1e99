"""Loops whose bodies are written for the platform, and the function that writes one."""

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
"""What stands in the place of which primitive; a TPU's compiler needs no help."""


def loop_safe(fn: F) -> F:
    """The same function, as the platform's compiler makes it fast in the body of a loop.

    On a CPU, XLA brings convolutions, above all those of gradients, into the form its fast kernels take only outside of
    loops; in `scan`, `fori_loop` and `while_loop` they run 10 to 60 times slower. Here the program that `fn` is traced
    to is rewritten instead, so it does not matter which library its convolutions come from. On a GPU, ReLU takes its
    gradient from its outputs, so that convolution, bias, residual and ReLU can be one kernel, and no activation is kept
    twice. On a TPU this is `fn`. Values change by rounding alone. Gradients must be taken inside `fn`, so that their
    part of the program is there to be rewritten.

    The attacks of this library and its training loop do this themselves. It is for loops of your own.

    Args:
      fn: of any arguments; the arrays among them are traced, all others stay what they are. It returns arrays.

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
    """`jax.lax.fori_loop` with a body that is `loop_safe`."""
    return jax.lax.fori_loop(lower, upper, loop_safe(body), init)


def while_loop(condition: Callable[[C], Any], body: Callable[[C], C], init: C) -> C:
    """`jax.lax.while_loop` with a body that is `loop_safe`."""
    return jax.lax.while_loop(condition, loop_safe(body), init)
