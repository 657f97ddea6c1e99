"""A multilayer perceptron, for the paper's three-dimensional toy data."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from piat_jax.core.types import Array
from piat_jax.models.layers import Linear, normalize
from piat_jax.models.registry import model


@model(
    "mlp",
    title="MLP",
    summary="Hidden layers with ReLU, with sizes from model.options.hidden.",
)
class MLP(nn.Module):
    """Flatten, hidden layers with ReLU, linear.

    Attributes:
      num_classes: K.
      hidden: units of each hidden layer.
      mean, std: input normalisation per channel, inside the model; () for none.
      dtype: activations; weights stay float32.
    """

    num_classes: int
    hidden: tuple[int, ...] = (100,)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        del train  # nothing here depends on it
        x = normalize(images, self.mean, self.std, self.dtype).reshape(images.shape[0], -1)
        for index, units in enumerate(self.hidden):
            x = nn.relu(Linear(units, dtype=self.dtype, name=f"hidden{index}")(x))
        return Linear(self.num_classes, dtype=self.dtype, name="linear")(x)
