"""What XLA is asked for when a whole program is compiled for a CPU."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp

NO_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""jax 0.10's is slower than what XLA has without it (Eigen's), and a cached program of many such calls loads slowly."""
ONEDNN = NO_YNNPACK | {"xla_cpu_experimental_onednn_custom_call": True}
"""YNNPACK would take the larger convolutions before oneDNN is asked."""


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """The options that make this version's programs fast; None where the defaults do, or where XLA_FLAGS names one.

    From jax 0.11 on XLA can call oneDNN, whose kernels take two thirds of the time of its own on convolutions; jax 0.10
    knows the option and does nothing, but is faster without YNNPACK (experiments/results/throughput/NOTES.md).
    """
    # A flag that the user has set decides: without oneDNN, XLA's cache can keep the programs of later versions.
    if any(name in os.environ.get("XLA_FLAGS", "") for name in ONEDNN):
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
