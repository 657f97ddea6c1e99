"""What XLA is asked for when a whole program is compiled."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

NO_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""jax 0.10's is slower than what XLA has without it (Eigen's), and a cached program of many such calls loads slowly."""
ONEDNN = NO_YNNPACK | {"xla_cpu_experimental_onednn_custom_call": True}
"""YNNPACK would take the larger convolutions before oneDNN is asked."""


class ProgramJit:
    """`jax.jit` of a whole program, on a CPU with the fastest convolutions and matrix products that XLA has there.

    From jax 0.11 on XLA:CPU can call oneDNN, whose kernels take two thirds of the time of its own on convolutions;
    jax 0.10 knows the option and does nothing, but is faster without YNNPACK (experiments/results/throughput/NOTES.md).
    Neither is the default, and options can be given to the outermost jit only, so this is for what is never nested.
    Nothing is asked for where XLA_FLAGS names one of them. What a jitted function has beside the call (`lower`,
    `clear_cache`) this has too.
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

    def __getattr__(self, name: str) -> Any:
        """What a jitted function has."""
        return getattr(self.compiled, name)


def program_jit(**options: Any) -> Callable[[Callable[..., Any]], ProgramJit]:
    """The decorator that compiles a whole program; `options` are those of `jax.jit`."""
    return functools.partial(ProgramJit, **options)


@functools.cache
def _compiler_options() -> dict[str, Any] | None:
    # A flag that the user has set decides: without oneDNN, XLA's cache can keep the programs of later versions.
    if jax.default_backend() != "cpu" or any(name in os.environ.get("XLA_FLAGS", "") for name in ONEDNN):
        return None

    def convolve(x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, x, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shape = jax.ShapeDtypeStruct((4, 4, 4, 4), jnp.float32)  # no array: training asks where nothing may be transferred
    try:
        program = jax.jit(convolve, compiler_options=ONEDNN).lower(shape).compile()
    except jax.errors.JaxRuntimeError:  # what XLA says of an option that it does not know
        return None
    if "__onednn" in (program.as_text() or ""):
        return ONEDNN
    return NO_YNNPACK if jax.__version_info__ < (0, 11) else None
