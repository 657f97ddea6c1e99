"""WideResNet and PreActResNet with Swish, as in Gowal et al. (2020) and work that builds on it."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from piat_jax.core.types import Array
from piat_jax.models.batch_norm import BatchNorm
from piat_jax.models.layers import Conv, Linear, he_fan_out, normalize, remat_block
from piat_jax.models.registry import model

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


class SwishBlock(nn.Module):
    """`conv(swish(bn(conv a))) + shortcut`, `a = swish(bn x)`; the shortcut is a convolution if the shape changes.

    The shortcut convolution is 1x1 on `a` if `wide`, else 3x3 on x. With stride 2, 3x3 convolutions pad one pixel after
    the image and none before it, as in TensorFlow; PyTorch's padding of one pixel on each side gives a different
    network.
    """

    features: int
    stride: int
    dtype: Any
    wide: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def conv(name: str, kernel: int = 3, stride: int = 1) -> Conv:
            pads = (0, 1) if kernel == 3 and stride == 2 else None
            return Conv(self.features, kernel, stride, pads, kernel_init=he_fan_out, dtype=self.dtype, name=name)

        a = nn.swish(BatchNorm(train, self.dtype, name="batchnorm_0")(x))
        y = conv("conv_0", stride=self.stride)(a)
        y = nn.swish(BatchNorm(train, self.dtype, name="batchnorm_1")(y))
        y = conv("conv_1")(y)
        if x.shape[-1] != self.features:
            kernel, source = (1, a) if self.wide else (3, x)
            x = conv("shortcut", kernel, self.stride)(source)
        return x + y


@model(
    "dm_preact_resnet18",
    title="PreActResNet-18 (Swish)",
    summary="PreActResNet-18 with Swish, as in DeepMind's code.",
    paper="Rebuffi et al. (2021), arXiv:2103.01946",
    stage_sizes=(2, 2, 2, 2),
)
class SwishPreActResNet(nn.Module):
    """PreActResNet with Swish: stem, stages of blocks (every one after the first halves the image), BN, Swish, linear.

    Attributes:
      num_classes: K.
      stage_sizes: blocks per stage; (2, 2, 2, 2) is PreActResNet-18.
      width: channels of the first stage; each later stage doubles it.
      remat: recompute each block's activations in the backward pass instead of keeping them: less memory, slower.
      mean, std: input normalisation per channel, inside the model; () for none. The published networks use CIFAR-10's,
        which their files do not contain.
      dtype: activations; weights and statistics stay float32.

    Source: Gowal et al. (2020), arXiv:2010.03593; Rebuffi et al. (2021), arXiv:2103.01946.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    remat: bool = False
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        x = normalize(images, self.mean, self.std, self.dtype)
        x = Conv(self.width, kernel_init=he_fan_out, dtype=self.dtype, name="conv_2d")(x)
        block = remat_block(SwishBlock) if self.remat else SwishBlock
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                stride = 2 if stage > 0 and index == 0 else 1
                features = self.width * 2**stage
                x = block(features, stride, self.dtype, wide=False, name=f"layer{stage}_{index}")(x, train)
        return _head(self, x, train)


@model(
    "dm_wide_resnet",
    title="WideResNet (Swish)",
    summary="With Swish, and with depth and width from model.options.",
    paper="Gowal et al. (2020), arXiv:2010.03593",
)
@model(
    "dm_wrn_70_16",
    title="WRN-70-16 (Swish)",
    summary="WRN-70-16 with Swish, as in DeepMind's code.",
    paper="Gowal et al. (2020), arXiv:2010.03593",
    blocks_per_group=11,
    widen_factor=16,
)
@model(
    "dm_wrn_34_10",
    title="WRN-34-10 (Swish)",
    summary="WRN-34-10 with Swish, as in DeepMind's code.",
    paper="Gowal et al. (2020), arXiv:2010.03593",
    blocks_per_group=5,
    widen_factor=10,
)
@model(
    "dm_wrn_28_10",
    title="WRN-28-10 (Swish)",
    summary="WRN-28-10 with Swish, as in DeepMind's code.",
    paper="Gowal et al. (2020), arXiv:2010.03593",
    blocks_per_group=4,
    widen_factor=10,
)
class SwishWideResNet(nn.Module):
    """WideResNet-D-W with Swish: stem to 16 channels, three groups at 16W, 32W and 64W, BN, Swish, pool, linear.

    Attributes:
      num_classes: K.
      blocks_per_group: n = (D - 4) / 6.
      widen_factor: W.
      remat, mean, std, dtype: as in `SwishPreActResNet`.

    Source: Gowal et al. (2020), arXiv:2010.03593.
    """

    num_classes: int
    blocks_per_group: int = 4
    widen_factor: int = 10
    remat: bool = False
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        x = normalize(images, self.mean, self.std, self.dtype)
        x = Conv(16, kernel_init=he_fan_out, dtype=self.dtype, name="init_conv")(x)
        block = remat_block(SwishBlock) if self.remat else SwishBlock
        for group in range(3):
            for index in range(self.blocks_per_group):
                stride = 2 if group > 0 and index == 0 else 1
                features = 16 * 2**group * self.widen_factor
                x = block(features, stride, self.dtype, wide=True, name=f"layer{group}_{index}")(x, train)
        return _head(self, x, train)


def _head(net: SwishWideResNet | SwishPreActResNet, x: Array, train: bool) -> Array:
    x = nn.swish(BatchNorm(train, net.dtype, name="batchnorm")(x))
    x = x.mean(axis=(1, 2), dtype=jnp.float32).astype(net.dtype)
    return Linear(net.num_classes, zero_bias=True, dtype=net.dtype, name="logits")(x)
