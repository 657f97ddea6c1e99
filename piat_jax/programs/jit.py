"""The jit of whole programs."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from piat_jax.programs.cpu.options import compiler_options
from piat_jax.programs.loops import loop_safe
from piat_jax.programs.platform import platform


class ProgramJit:
    """`jax.jit` of a whole program, on a CPU with XLA's fastest convolutions and matrix products.

    Compiler options can only be given to the outermost jit, so never nest this. It has the other attributes of a jitted
    function too (`lower`, `clear_cache`).

    Attributes:
      fn: the original function.
      program: the function to compile, made `loop_safe`.
    """

    def __init__(self, fn: Callable[..., Any], **options: Any):
        functools.update_wrapper(self, fn)
        self.fn, self.program, self.options = fn, loop_safe(fn), options

    @functools.cached_property
    def compiled(self) -> Any:
        """The jitted function, made at the first call, because asking for the platform starts JAX's backend."""
        options = compiler_options() if platform() == "cpu" else None
        return jax.jit(self.program, compiler_options=options, **self.options)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the compiled function."""
        return self.compiled(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the jitted function."""
        return getattr(self.compiled, name)


def program_jit(**options: Any) -> Callable[[Callable[..., Any]], ProgramJit]:
    """A decorator that compiles a whole program; `options` are those of `jax.jit`."""
    return functools.partial(ProgramJit, **options)
