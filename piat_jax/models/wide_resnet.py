"""WideResNet-D-W (Zagoruyko & Komodakis, 2016), as in adversarial-training codes."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from piat_jax.core.types import Array
from piat_jax.models.batch_norm import BatchNorm
from piat_jax.models.layers import Conv, Linear, he_fan_out, normalize, remat_block
from piat_jax.models.registry import model


class WideBlock(nn.Module):
    """`conv(relu(bn(conv(a)))) + shortcut`, `a = relu(bn x)`; shortcut: x, or conv1x1 of `a` if the shape changes."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        a = nn.relu(BatchNorm(train, self.dtype, name="bn1")(x))
        y = Conv(self.features, stride=self.stride, kernel_init=he_fan_out, dtype=self.dtype, name="conv1")(a)
        y = nn.relu(BatchNorm(train, self.dtype, name="bn2")(y))
        y = Conv(self.features, kernel_init=he_fan_out, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.features:
            conv = Conv(self.features, 1, self.stride, kernel_init=he_fan_out, dtype=self.dtype, name="shortcut_conv")
            x = conv(a)
        return x + y


@model(
    "wide_resnet",
    title="WideResNet",
    summary="With depth and width from model.options.",
    paper="Zagoruyko and Komodakis (2016), arXiv:1605.07146",
)
@model(
    "wrn_70_16",
    title="WRN-70-16",
    summary="Three groups of eleven blocks, sixteen times as wide.",
    paper="Zagoruyko and Komodakis (2016), arXiv:1605.07146",
    blocks_per_group=11,
    widen_factor=16,
)
@model(
    "wrn_34_20",
    title="WRN-34-20",
    summary="Three groups of five blocks, twenty times as wide.",
    paper="Zagoruyko and Komodakis (2016), arXiv:1605.07146",
    blocks_per_group=5,
    widen_factor=20,
)
@model(
    "wrn_34_10",
    title="WRN-34-10",
    summary="Three groups of five blocks, ten times as wide.",
    paper="Zagoruyko and Komodakis (2016), arXiv:1605.07146",
    blocks_per_group=5,
    widen_factor=10,
)
# The paper counts the depth as 6n + 2: five blocks per group.
@model(
    "wrn_32_10",
    title="WRN-32-10",
    summary="WRN-34-10 under its name in the PIAT paper.",
    paper="Zagoruyko and Komodakis (2016), arXiv:1605.07146",
    blocks_per_group=5,
    widen_factor=10,
)
@model(
    "wrn_28_10",
    title="WRN-28-10",
    summary="Three groups of four blocks, ten times as wide.",
    paper="Zagoruyko and Komodakis (2016), arXiv:1605.07146",
    blocks_per_group=4,
    widen_factor=10,
)
class WideResNet(nn.Module):
    """3x3 stem to 16 channels, three groups of blocks at 16W, 32W and 64W (strides 1, 2, 2), BN, ReLU, pool, linear.

    Attributes:
      num_classes: K.
      blocks_per_group: n = (D - 4) / 6 in the usual count.
      widen_factor: W.
      remat: recompute each block's activations in the backward pass instead of keeping them: less memory, slower.
      mean, std: input normalisation per channel, inside the model; () for none.
      dtype: activations; weights and statistics stay float32.
    """

    num_classes: int
    blocks_per_group: int = 5
    widen_factor: int = 10
    remat: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        x = normalize(images, self.mean, self.std, self.dtype)
        x = Conv(16, kernel_init=he_fan_out, dtype=self.dtype, name="conv1")(x)
        block = remat_block(WideBlock) if self.remat else WideBlock
        for group in range(3):
            for index in range(self.blocks_per_group):
                stride = 2 if group > 0 and index == 0 else 1
                features = 16 * 2**group * self.widen_factor
                x = block(features, stride, self.dtype, name=f"block{group + 1}_{index}")(x, train)
        x = nn.relu(BatchNorm(train, self.dtype, name="bn1")(x))
        x = x.mean(axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        return Linear(self.num_classes, zero_bias=True, dtype=self.dtype, name="fc")(x)
