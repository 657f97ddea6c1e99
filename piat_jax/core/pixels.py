"""Conversion of pixels from uint8 to float32 in [0, 1]."""

import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.types import Array

HIGH = np.float32(32897 / 2**23)
LOW = np.float32(1 / 255 - 32897 / 2**23)


def to_float(images: Array | np.ndarray) -> Array:
    """uint8 pixels, NumPy or JAX, as float32 in [0, 1]: x / 255. Pixels are scaled only here.

    Raises:
      InputError: `images` are not uint8; floats may already be scaled.

    >>> to_float(jnp.array([0, 51, 255], jnp.uint8)).tolist()
    [0.0, 0.20000000298023224, 1.0]
    """
    if images.dtype != jnp.uint8:
        raise InputError(f"images has dtype {images.dtype}; give uint8 in [0, 255]")
    # XLA would turn a division by 255 into a product that is one ulp off for half the values. HIGH has so few bits that
    # its product with a byte is exact, and the sum rounds to the result of NumPy's and PyTorch's x / 255.
    x = jnp.asarray(images).astype(jnp.float32)
    return x * HIGH + x * LOW


def as_float(images: Array) -> Array:
    """Pixels as float32 in [0, 1]: uint8 is scaled, floats keep their values.

    >>> as_float(jnp.array([0, 255], jnp.uint8)).tolist(), as_float(jnp.array([0.5])).tolist()
    ([0.0, 1.0], [0.5])
    """
    return to_float(images) if images.dtype == jnp.uint8 else images.astype(jnp.float32)
