"""XLA's compiler options for whole programs on a CPU."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp

NO_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""jax 0.10's YNNPACK is slower than Eigen, which XLA uses without it, and cached programs with it load slowly."""
ONEDNN = NO_YNNPACK | {"xla_cpu_experimental_onednn_custom_call": True}
"""YNNPACK is off because it would take the larger convolutions before oneDNN."""


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """The fastest options for this version of jax; None if the defaults are fastest, or if XLA_FLAGS sets one of them.

    From jax 0.11 on, XLA can call oneDNN, whose convolutions take two thirds of the time of XLA's own. jax 0.10 accepts
    the option without effect, but is faster without YNNPACK (experiments/results/throughput/NOTES.md).
    """
    # A flag set by the user takes precedence: without oneDNN, later versions can cache compiled programs.
    if any(name in os.environ.get("XLA_FLAGS", "") for name in ONEDNN):
        return None

    def convolve(x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, x, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    # Not an array, because the user may have forbidden transfers.
    shape = jax.ShapeDtypeStruct((4, 4, 4, 4), jnp.float32)
    try:
        program = jax.jit(convolve, compiler_options=ONEDNN).lower(shape).compile()
    except jax.errors.JaxRuntimeError:  # XLA does not know the option
        return None
    if "__onednn" in (program.as_text() or ""):
        return ONEDNN
    return NO_YNNPACK if jax.__version_info__ < (0, 11) else None
