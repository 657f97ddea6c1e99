"""The jit of whole programs."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from piat_jax.programs.cpu.options import compiler_options
from piat_jax.programs.loops import loop_safe
from piat_jax.programs.platform import platform


class ProgramJit:
    """`jax.jit` of a whole program, on a CPU with the fastest convolutions and matrix products that XLA has there.

    Compiler options can be given to the outermost jit only, so this is for what is never nested. What a jitted function
    has beside the call (`lower`, `clear_cache`) this has too.

    Attributes:
      fn: the function itself.
      program: the function as it is compiled, `loop_safe`.
    """

    def __init__(self, fn: Callable[..., Any], **options: Any):
        functools.update_wrapper(self, fn)
        self.fn, self.program, self.options = fn, loop_safe(fn), options

    @functools.cached_property
    def compiled(self) -> Any:
        """The jitted function; made when it is first called, for asking for the platform starts JAX's backend."""
        options = compiler_options() if platform() == "cpu" else None
        return jax.jit(self.program, compiler_options=options, **self.options)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function, compiled."""
        return self.compiled(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        """What a jitted function has."""
        return getattr(self.compiled, name)


def program_jit(**options: Any) -> Callable[[Callable[..., Any]], ProgramJit]:
    """The decorator that compiles a whole program; `options` are those of `jax.jit`."""
    return functools.partial(ProgramJit, **options)
