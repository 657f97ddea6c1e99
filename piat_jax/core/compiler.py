"""What XLA is asked for when a whole program is compiled."""

import functools
from collections.abc import Callable
from typing import Any

import jax

ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True}


class OuterJit:
    """`jax.jit` of a whole program, with oneDNN's convolutions and matrix products on a CPU where XLA has them.

    From jax 0.12 on XLA:CPU can call oneDNN, which takes two thirds of the time of its own kernels on small
    convolutions (experiments/autoattack/README.md); older versions know the option and ignore it. It is not the
    default there, and options can be given to the outermost jit only, so this is for what is never nested.
    """

    def __init__(self, fn: Callable[..., Any], **options: Any):
        functools.update_wrapper(self, fn)
        self.fn, self.options = fn, options

    @functools.cached_property
    def compiled(self) -> Any:
        """The jitted function; made when it is first called, for asking for the backend starts it."""
        return jax.jit(self.fn, compiler_options=_compiler_options(), **self.options)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function, compiled."""
        return self.compiled(*arguments, **keywords)


@functools.cache
def _compiler_options() -> dict[str, Any] | None:
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=ONEDNN)(0)
    except Exception:  # a version of XLA that has no such option says so in an error of its own
        return None
    return ONEDNN
