"""ConvNeXt (Liu et al., 2022), also with a stem of several convolutions (Singh et al., 2023)."""

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from piat_jax.core.checks import InputError
from piat_jax.core.types import Array
from piat_jax.models.layers import Conv, layer_norm, layer_scale, normalize, small_normal
from piat_jax.models.registry import model
from piat_jax.models.stems import ConvStem, convolution_strides
from piat_jax.models.stochastic_depth import branch_factors, kept, rising_rates
from piat_jax.models.vit import FeedForward, PatchProjection, dense


class Block(nn.Module):
    """`x + gamma * mlp(norm(depthwise conv7x7 x))`."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array, factors: Array | None) -> Array:
        width = x.shape[-1]
        options = {"depthwise": True, "bias": True, "zero_bias": True, "kernel_init": small_normal}
        y = Conv(width, 7, **options, dtype=self.dtype, name="conv_dw")(x)
        y = layer_norm(self.dtype, "norm")(y)
        return x + kept(layer_scale(self, "gamma", 1e-6, FeedForward(self.dtype, name="mlp")(y)), factors)


class Stage(nn.Module):
    """LayerNorm and a 2x2 convolution of stride 2 if the width changes; then blocks."""

    width: int
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, factors: Sequence[Array | None]) -> Array:
        if x.shape[-1] != self.width:
            x = layer_norm(self.dtype, "downsample_0")(x)
            x = patches(x, self.width, 2, self.dtype, "downsample_1")
        for index, of_block in enumerate(factors):
            x = (nn.remat(Block) if self.remat else Block)(self.dtype, name=f"blocks_{index}")(x, of_block)
        return x


def patches(x: Array, width: int, size: int, dtype: Any, name: str) -> Array:
    """A convolution whose stride equals its window, `[B, H, W, C] -> [B, H / size, W / size, width]`."""
    batch, height, span, _ = x.shape
    projection = PatchProjection(width, size, dtype, kernel_init=small_normal, zero_bias=True, name=name)
    return projection(x).reshape(batch, height // size, span // size, width)


class Head(nn.Module):
    """The mean over all pixels, LayerNorm, linear."""

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.mean(axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        return dense(self.num_classes, self.dtype, "fc")(layer_norm(self.dtype, "norm")(x))


@model(
    "convnext",
    title="ConvNeXt",
    summary="With width and depth from model.options.",
    paper="Liu et al. (2022), arXiv:2201.03545",
)
@model(
    "convnext_large_convstem",
    title="ConvNeXt-L + ConvStem",
    summary="ConvNeXt-L with three convolutions in place of patches.",
    paper="Singh et al. (2023), arXiv:2303.01870",
    depths=(3, 3, 27, 3),
    widths=(192, 384, 768, 1536),
    stem=(96, 144, 192),
)
@model(
    "convnext_base_convstem",
    title="ConvNeXt-B + ConvStem",
    summary="ConvNeXt-B with three convolutions in place of patches.",
    paper="Singh et al. (2023), arXiv:2303.01870",
    depths=(3, 3, 27, 3),
    widths=(128, 256, 512, 1024),
    stem=(64, 96, 128),
)
@model(
    "convnext_small_convstem",
    title="ConvNeXt-S + ConvStem",
    summary="ConvNeXt-S with two convolutions in place of patches.",
    paper="Singh et al. (2023), arXiv:2303.01870",
    depths=(3, 3, 27, 3),
    widths=(96, 192, 384, 768),
    stem=(48, 96),
)
@model(
    "convnext_tiny_convstem",
    title="ConvNeXt-T + ConvStem",
    summary="ConvNeXt-T with two convolutions in place of patches.",
    paper="Singh et al. (2023), arXiv:2303.01870",
    depths=(3, 3, 9, 3),
    widths=(96, 192, 384, 768),
    stem=(48, 96),
)
@model(
    "convnext_large",
    title="ConvNeXt-L",
    summary="Stages of 3, 3, 27 and 3 blocks, starting at 192 channels.",
    paper="Liu et al. (2022), arXiv:2201.03545",
    depths=(3, 3, 27, 3),
    widths=(192, 384, 768, 1536),
    stem=(),
)
@model(
    "convnext_base",
    title="ConvNeXt-B",
    summary="Stages of 3, 3, 27 and 3 blocks, starting at 128 channels.",
    paper="Liu et al. (2022), arXiv:2201.03545",
    depths=(3, 3, 27, 3),
    widths=(128, 256, 512, 1024),
    stem=(),
)
@model(
    "convnext_small",
    title="ConvNeXt-S",
    summary="Stages of 3, 3, 27 and 3 blocks, starting at 96 channels.",
    paper="Liu et al. (2022), arXiv:2201.03545",
    depths=(3, 3, 27, 3),
    widths=(96, 192, 384, 768),
    stem=(),
)
@model(
    "convnext_tiny",
    title="ConvNeXt-T",
    summary="Stages of 3, 3, 9 and 3 blocks, starting at 96 channels.",
    paper="Liu et al. (2022), arXiv:2201.03545",
    depths=(3, 3, 9, 3),
    widths=(96, 192, 384, 768),
    stem=(),
)
class ConvNeXt(nn.Module):
    """Patches or a stem of convolutions, stages of blocks (later ones halve the image), mean, LayerNorm, linear.

    Parameters are named as in timm: `stages_0/blocks_1/conv_dw/conv/kernel` is its `stages.0.blocks.1.conv_dw.weight`.
    There is no dropout; without `drop_path` training and evaluation are the same.

    Attributes:
      num_classes: K.
      depths: blocks per stage.
      widths: channels of each stage, increasing.
      stem: channels of the convolutions in place of patches, the last one `widths[0]`; () for patches.
      stem_stride: downsampling of the stem: the patch size, or the product of the strides of `stem`, a power of two. 4
        for images of 224 pixels, 1 or 2 for 32.
      drop_path: stochastic depth's rate in the last block, in [0, 1); it rises linearly from 0 in the first block.
      remat: recompute each block's activations in the backward pass instead of keeping them: less memory, slower.
      mean, std: input normalisation per channel, inside the model; () for none.
      dtype: activations; weights and LayerNorm's statistics stay float32.

    Source: Liu et al. (2022), arXiv:2201.03545, as built by timm: LayerNorm's epsilon is 1e-6, GELU is exact, layer
    scales start at 1e-6. `stem`: Singh et al. (2023), arXiv:2303.01870.
    """

    num_classes: int
    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    stem: tuple[int, ...] = ()
    stem_stride: int = 4
    drop_path: float = 0.0
    remat: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    blocks_per_part: ClassVar[int] = 3

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        del train  # stochastic depth depends on the keys, which are only given in training
        self._check(images)
        x = normalize(images, self.mean, self.std, self.dtype)
        if self.stem:
            strides = convolution_strides(self.stem_stride, len(self.stem))
            x = ConvStem(self.stem, strides, 0, self.dtype, name="stem")(x)
        else:
            x = patches(x, self.widths[0], self.stem_stride, self.dtype, "stem_0")
            x = layer_norm(self.dtype, "stem_1")(x)
        rates = rising_rates(self.drop_path, sum(self.depths))
        factors = iter(branch_factors(self, rates, 1))
        for index, (width, depth) in enumerate(zip(self.widths, self.depths)):
            stage = Stage(width, self.remat, self.dtype, name=f"stages_{index}")
            x = stage(x, tuple(itertools.islice(factors, depth)))
        return Head(self.num_classes, self.dtype, name="head")(x)

    def _check(self, images: Array) -> None:
        if len(self.depths) != len(self.widths) or any(a >= b for a, b in zip(self.widths, self.widths[1:])):
            raise InputError(
                f"widths={self.widths} must increase, one for each of depths={self.depths}; give, for example, (16, 32)"
            )
        if self.stem and self.stem[-1] != self.widths[0]:
            raise InputError(f"stem={self.stem} must end with the width of the first stage, {self.widths[0]}")
        size = self.stem_stride * 2 ** (len(self.widths) - 1)
        if images.shape[1] % size or images.shape[2] % size:
            raise InputError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels: the stem and {len(self.widths)} stages need "
                f"sides divisible by {size}; give such images, or a smaller stem_stride"
            )
