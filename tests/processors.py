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


OLDER_EMITTER = "xla_cpu_use_fusion_emitters=false" in os.environ["XLA_FLAGS"]
"""Whether XLA's older emitter compiles (conftest.py); it rounds programs with the same operations differently."""


def same_bits(one, other, rtol=1e-6, atol=0.0):
    """Trees with the same bits; with the older emitter, equal within the tolerances."""
    tolerances = {"rtol": rtol, "atol": atol} if OLDER_EMITTER else {"rtol": 0.0}
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerances), one, other)


@functools.cache
def _has_float16():
    try:
        jax.block_until_ready(jax.jit(lambda x: (x.astype(jnp.float16) + 1).astype(jnp.float32))(jnp.ones(8)))
    except jax.errors.JaxRuntimeError:
        return False
    return True
