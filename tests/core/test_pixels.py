import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.pixels import to_float


def test_to_float_is_the_exactly_rounded_quotient():
    pixels = np.arange(256, dtype=np.uint8)
    expected = pixels.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(to_float(jnp.asarray(pixels)), expected, strict=True)
    np.testing.assert_array_equal(jax.jit(to_float)(pixels), expected, strict=True)
    assert isinstance(to_float(pixels), jax.Array)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_to_float_refuses_what_may_be_scaled_already(dtype):
    with pytest.raises(InputError, match=f"images has dtype {jnp.dtype(dtype)}; give uint8"):
        to_float(jnp.zeros((2, 2), dtype))
