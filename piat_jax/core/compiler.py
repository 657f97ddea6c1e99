"""What XLA is asked for when a whole program is compiled."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True, "xla_cpu_experimental_ynn_fusion_type": ""}
"""YNNPACK is switched off because it takes the larger convolutions before oneDNN is asked."""


class OuterJit:
    """`jax.jit` of a whole program, with oneDNN's convolutions and matrix products on a CPU where XLA has them.

    From jax 0.12 on XLA:CPU can call oneDNN, whose kernels take two thirds of the time of its own on convolutions
    (experiments/throughput/NOTES.md); older versions know the option and do nothing. It is not the default there, and
    options can be given to the outermost jit only, so this is for what is never nested. Nothing is asked for where
    XLA_FLAGS names the option. What a jitted function has beside the call (`lower`, `clear_cache`) this has too.
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


@functools.cache
def _compiler_options() -> dict[str, Any] | None:
    # A flag that the user has set decides: without oneDNN, XLA's cache can keep the programs.
    if jax.default_backend() != "cpu" or "xla_cpu_experimental_onednn_custom_call" in os.environ.get("XLA_FLAGS", ""):
        return None

    def convolve(x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, x, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    try:
        program = jax.jit(convolve, compiler_options=ONEDNN).lower(jnp.zeros((4, 4, 4, 4))).compile()
    except Exception:  # a version of XLA that has no such option says so in an error of its own
        return None
    # Without oneDNN nothing may be switched off.
    return ONEDNN if "__onednn" in (program.as_text() or "") else None
