"""What depends on how XLA compiles for a processor."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def skip_unless_compiled(dtype):
    """Skip a test in float16 where XLA has no code for it: on x86 without F16C, as `--xla_cpu_max_isa=SSE4_2` is."""
    if jnp.dtype(dtype) == jnp.float16 and not _has_float16():
        pytest.skip("XLA compiles no float16 for this processor")


def same_bits(one, other):
    """Of two programs with the same operations: XLA's older emitter (conftest.py) rounds them differently."""
    older = "xla_cpu_use_fusion_emitters=false" in os.environ["XLA_FLAGS"]
    np.testing.assert_allclose(one, other, rtol=1e-6 if older else 0)


@functools.cache
def _has_float16():
    try:
        jax.block_until_ready(jax.jit(lambda x: (x.astype(jnp.float16) + 1).astype(jnp.float32))(jnp.ones(8)))
    except jax.errors.JaxRuntimeError:
        return False
    return True
