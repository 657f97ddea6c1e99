"""What XLA cannot do on some processors."""

import functools

import jax
import jax.numpy as jnp
import pytest


def skip_unless_compiled(dtype):
    """Skip a test in float16 where XLA has no code for it: on x86 without F16C, as `--xla_cpu_max_isa=SSE4_2` is."""
    if jnp.dtype(dtype) == jnp.float16 and not _has_float16():
        pytest.skip("XLA compiles no float16 for this processor")


@functools.cache
def _has_float16():
    try:
        jax.block_until_ready(jax.jit(lambda x: (x.astype(jnp.float16) + 1).astype(jnp.float32))(jnp.ones(8)))
    except jax.errors.JaxRuntimeError:
        return False
    return True
