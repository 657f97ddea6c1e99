"""Stems of convolutions in place of patches (Singh et al., 2023)."""

from typing import Any

import flax.linen as nn

from piat_jax.core.checks import InputError
from piat_jax.core.types import Array
from piat_jax.models.layers import Conv, layer_norm


class ConvStem(nn.Module):
    """3x3 convolutions, each followed by LayerNorm and GELU; the parts are numbered as in the published networks.

    Attributes:
      widths: channels of each convolution.
      strides: stride of each convolution.
      features: channels of a 1x1 convolution at the end; 0 for none.
      dtype: activations.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for index, (width, stride) in enumerate(zip(self.widths, self.strides)):
            x = Conv(width, stride=stride, bias=True, dtype=self.dtype, name=f"stem_{3 * index}")(x)
            x = nn.gelu(layer_norm(self.dtype, f"stem_{3 * index + 1}")(x), approximate=False)
        if self.features:
            x = Conv(self.features, 1, bias=True, dtype=self.dtype, name=f"stem_{3 * len(self.widths)}")(x)
        return x


def convolution_strides(stride: int, count: int, *, last: bool = False) -> tuple[int, ...]:
    """The strides of `count` convolutions: 2 for the first ones, or the last ones, and 1 for the rest.

    Args:
      stride: the product of the strides, a power of two.
      count: number of convolutions.
      last: whether the last convolutions have stride 2.

    Raises:
      InputError: `count` convolutions cannot give this stride.

    >>> convolution_strides(4, 3), convolution_strides(4, 3, last=True)
    ((2, 2, 1), (1, 2, 2))
    """
    halvings = stride.bit_length() - 1
    if 2**halvings != stride or halvings > count:
        raise InputError(
            f"a stem of {count} convolutions cannot have stride {stride}; "
            f"give one of {', '.join(str(2**n) for n in range(count + 1))}"
        )
    strides = (2,) * halvings + (1,) * (count - halvings)
    return strides[::-1] if last else strides
