"""ResNets for CIFAR and ImageNet (He et al., 2016), also with bottlenecks and pre-activation (He et al., 2016b)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from piat_jax.core.types import Array
from piat_jax.models.batch_norm import BatchNorm
from piat_jax.models.layers import Conv, Linear, normalize, remat_block
from piat_jax.models.registry import model


class BasicBlock(nn.Module):
    """`relu(bn(conv(relu(bn(conv x)))) + shortcut)`; the shortcut is conv1x1 + BN if the shape changes."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = Conv(self.features, stride=self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(train, self.dtype, name="bn1")(y))
        y = Conv(self.features, dtype=self.dtype, name="conv2")(y)
        y = BatchNorm(train, self.dtype, name="bn2")(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = BatchNorm(train, self.dtype, name="shortcut_bn")(x)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """`relu(bn(conv1x1(relu(bn(conv(relu(bn(conv1x1 x))))))) + shortcut)` with `4 * features` output channels.

    Inside it has `widen * features` channels. The 3x3 convolution has the stride. The shortcut is conv1x1 + BN if the
    shape changes.
    """

    features: int
    stride: int
    dtype: Any
    widen: int = 1

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        inside = self.widen * self.features
        y = Conv(inside, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(train, self.dtype, name="bn1")(y))
        y = Conv(inside, stride=self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(BatchNorm(train, self.dtype, name="bn2")(y))
        y = Conv(4 * self.features, 1, dtype=self.dtype, name="conv3")(y)
        y = BatchNorm(train, self.dtype, name="bn3")(y)
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            x = Conv(4 * self.features, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = BatchNorm(train, self.dtype, name="shortcut_bn")(x)
        return nn.relu(x + y)


class PreActBlock(nn.Module):
    """`conv(relu(bn(conv(a)))) + shortcut`, `a = relu(bn x)`; the shortcut is a conv without BN if the shape changes.

    The shortcut convolution takes `a`, or x with `raw_shortcut`.
    """

    features: int
    stride: int
    dtype: Any
    raw_shortcut: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        a = nn.relu(BatchNorm(train, self.dtype, name="bn1")(x))
        y = Conv(self.features, stride=self.stride, dtype=self.dtype, name="conv1")(a)
        y = nn.relu(BatchNorm(train, self.dtype, name="bn2")(y))
        y = Conv(self.features, dtype=self.dtype, name="conv2")(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(
                x if self.raw_shortcut else a
            )
        return x + y


@model(
    "small_resnet",
    title="Small ResNet",
    summary="Three stages of one block, starting at 16 channels, unless model.options says otherwise.",
)
# Two networks have this name; the first form's weights would also fit the second, except its last BN.
@model(
    "preact_resnet18_v1",
    title="PreActResNet-18 (v1)",
    summary="The first published form, with raw shortcuts and without BatchNorm and ReLU before the pooling.",
    paper="He et al. (2016), arXiv:1603.05027",
    stage_sizes=(2, 2, 2, 2),
    pre_activation=True,
    raw_shortcut=True,
)
@model(
    "preact_resnet18",
    title="PreActResNet-18",
    summary="BatchNorm and ReLU before each convolution, and once more before the pooling.",
    paper="He et al. (2016), arXiv:1603.05027",
    stage_sizes=(2, 2, 2, 2),
    pre_activation=True,
)
@model(
    "resnet50",
    title="ResNet-50",
    summary="Bottlenecks in four stages of 3, 4, 6 and 3.",
    paper="He et al. (2016), arXiv:1512.03385",
    stage_sizes=(3, 4, 6, 3),
    bottleneck=True,
)
@model(
    "resnet26",
    title="ResNet-26",
    summary="ResNet-18 with bottlenecks, which the code of the RPAT paper calls ResNet-18.",
    paper="He et al. (2016), arXiv:1512.03385",
    stage_sizes=(2, 2, 2, 2),
    bottleneck=True,
)
@model(
    "resnet18",
    title="ResNet-18",
    summary="Four stages of two blocks after a 3x3 stem, for images of 32 pixels.",
    paper="He et al. (2016), arXiv:1512.03385",
    stage_sizes=(2, 2, 2, 2),
)
class ResNet(nn.Module):
    """3x3 stem, stages of blocks (each after the first halves the image and doubles the width), pool, linear.

    Attributes:
      num_classes: K.
      stage_sizes: blocks per stage; (2, 2, 2, 2) is ResNet-18.
      width: channels of the first stage.
      stem_stride: 1 for CIFAR; 2 makes all layers after the stem four times cheaper.
      bottleneck: blocks of three convolutions, as in ResNet-50.
      pre_activation: PreActResNet in its second published form: no BN after the stem, the shortcut convolution takes
        the activated tensor and has no BN, and a BN and ReLU come before the pooling.
      raw_shortcut: with `pre_activation`, its first published form: the shortcut convolution takes the block's input,
        and there is no BN and ReLU before the pooling.
      remat: recompute each block's activations in the backward pass instead of keeping them: less memory, slower.
      mean, std: input normalisation per channel, inside the model; () for none.
      dtype: activations; weights and statistics stay float32.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    stem_stride: int = 1
    bottleneck: bool = False
    pre_activation: bool = False
    raw_shortcut: bool = False
    remat: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        x = normalize(images, self.mean, self.std, self.dtype)
        x = Conv(self.width, stride=self.stem_stride, dtype=self.dtype, name="conv1")(x)
        if not self.pre_activation:
            x = nn.relu(BatchNorm(train, self.dtype, name="bn1")(x))
        kind = PreActBlock if self.pre_activation else Bottleneck if self.bottleneck else BasicBlock
        block = remat_block(kind) if self.remat else kind
        options: dict[str, Any] = {"raw_shortcut": self.raw_shortcut} if self.pre_activation else {}
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                stride = 2 if stage > 0 and index == 0 else 1
                features, name = self.width * 2**stage, f"layer{stage + 1}_{index}"
                x = block(features, stride, self.dtype, **options, name=name)(x, train)
        if self.pre_activation and not self.raw_shortcut:
            x = nn.relu(BatchNorm(train, self.dtype, name="bn")(x))
        x = x.mean(axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        return Linear(self.num_classes, dtype=self.dtype, name="linear")(x)


@model(
    "imagenet_resnet",
    title="ImageNet ResNet",
    summary="With width and depth from model.options.",
    paper="He et al. (2016), arXiv:1512.03385",
)
@model(
    "wrn_50_2",
    title="WRN-50-2",
    summary="ResNet-50 for ImageNet with 3x3 convolutions that are twice as wide.",
    paper="Zagoruyko and Komodakis (2016), arXiv:1605.07146",
    stage_sizes=(3, 4, 6, 3),
    bottleneck=True,
    widen=2,
)
@model(
    "resnet50_imagenet",
    title="ResNet-50 (ImageNet)",
    summary="Bottlenecks in four stages of 3, 4, 6 and 3 after a 7x7 stem and a pooling, as in torchvision.",
    paper="He et al. (2016), arXiv:1512.03385",
    stage_sizes=(3, 4, 6, 3),
    bottleneck=True,
    widen=1,
)
@model(
    "resnet18_imagenet",
    title="ResNet-18 (ImageNet)",
    summary="Four stages of two blocks after a 7x7 stem and a pooling, as in torchvision.",
    paper="He et al. (2016), arXiv:1512.03385",
    stage_sizes=(2, 2, 2, 2),
    bottleneck=False,
    widen=1,
)
class ImageNetResNet(nn.Module):
    """7x7 stem of stride 2, 3x3 max pooling of stride 2, stages of blocks, mean, linear; downsamples 32 times.

    Attributes:
      num_classes: K.
      stage_sizes: blocks per stage; (3, 4, 6, 3) is ResNet-50.
      width: channels of the stem and of the first stage's 3x3 convolutions.
      bottleneck: blocks of three convolutions, with the stride in the second: "v1.5", as in torchvision and timm.
      widen: factor on the channels inside a bottleneck; 2 in WideResNet-50-2.
      remat: recompute each block's activations in the backward pass instead of keeping them: less memory, slower.
      mean, std: input normalisation per channel, inside the model; () for none.
      dtype: activations; weights and statistics stay float32.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    bottleneck: bool = True
    widen: int = 1
    remat: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        x = normalize(images, self.mean, self.std, self.dtype)
        x = Conv(self.width, 7, 2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(train, self.dtype, name="bn1")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # type: ignore[arg-type]
        kind = Bottleneck if self.bottleneck else BasicBlock
        block = remat_block(kind) if self.remat else kind
        options: dict[str, Any] = {"widen": self.widen} if self.bottleneck else {}
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                stride = 2 if stage > 0 and index == 0 else 1
                features, name = self.width * 2**stage, f"layer{stage + 1}_{index}"
                x = block(features, stride, self.dtype, **options, name=name)(x, train)
        x = x.mean(axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        return Linear(self.num_classes, dtype=self.dtype, name="fc")(x)
