"""XCiT (El-Nouby et al., 2021): attention among channels, and a class token that attends to all patches at the end."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import check_count, check_patches
from piat_jax.core.types import Array
from piat_jax.models.batch_norm import BatchNorm
from piat_jax.models.layers import Conv, layer_norm, layer_scale, normalize, remat_block, small_normal
from piat_jax.models.registry import model
from piat_jax.models.stems import convolution_strides
from piat_jax.models.stochastic_depth import branch_factors, kept
from piat_jax.models.vit import FeedForward, attend, attention_weights, check_heads, classify, dense, prepend

FREQUENCIES, TEMPERATURE = 32, 10_000.0
"""Of the position encoding: numbers along each axis, and the longest period."""


class CrossCovarianceAttention(nn.Module):
    """`softmax(t Q K^T)` among the channels of each head, with Q and K normalised along the tokens; `[B, N, D]`."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, tokens, width = x.shape
        qkv = dense(3 * width, self.dtype, "qkv")(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        scores = jnp.einsum("bnhc,bnhd->bhcd", _unit(q), _unit(k), preferred_element_type=jnp.float32)
        temperature = self.param("temperature", nn.initializers.ones, (self.heads, 1, 1), jnp.float32)
        weights = jax.nn.softmax(scores * temperature[None], axis=-1).astype(v.dtype)
        attended = jnp.einsum("bhcd,bnhd->bnhc", weights, v)
        return dense(width, self.dtype, "proj")(attended.reshape(batch, tokens, width))


def _unit(x: Array) -> Array:
    """`x[B, N, H, C]` divided by its length along the tokens, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=1, keepdims=True), 1e-24))


class LocalInteraction(nn.Module):
    """Two depthwise 3x3 convolutions on the grid of tokens, with GELU and BatchNorm between them."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options: dict[str, Any] = {"depthwise": True, "bias": True, "dtype": self.dtype}
        x = nn.gelu(Conv(x.shape[-1], **options, name="conv1")(x), approximate=False)
        return Conv(x.shape[-1], **options, name="conv2")(BatchNorm(train, self.dtype, name="bn")(x))


class Block(nn.Module):
    """Attention among channels, local interaction and MLP, each on the LayerNorm of `x[B, H, W, D]` and added to it."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool, factors: Array | None) -> Array:
        attention = CrossCovarianceAttention(self.heads, self.dtype, name="attn")
        y = layer_norm(self.dtype, "norm1")(x).reshape(x.shape[0], -1, x.shape[-1])
        x = x + kept(layer_scale(self, "gamma1", 1.0, attention(y)), factors, 0).reshape(x.shape)
        y = LocalInteraction(self.dtype, name="local_mp")(layer_norm(self.dtype, "norm3")(x), train)
        x = x + kept(layer_scale(self, "gamma3", 1.0, y), factors, 1)
        y = FeedForward(self.dtype, name="mlp")(layer_norm(self.dtype, "norm2")(x))
        return x + kept(layer_scale(self, "gamma2", 1.0, y), factors, 2)


class ClassAttention(nn.Module):
    """The first token attends to all tokens; returns the new first token, `[B, 1, D]`."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]

        def heads(tokens: Array, name: str) -> Array:
            return dense(width, self.dtype, name)(tokens).reshape(*tokens.shape[:2], self.heads, width // self.heads)

        q, k, v = heads(x[:, :1], "q"), heads(x, "k"), heads(x, "v")
        return dense(width, self.dtype, "proj")(attend(attention_weights(q, k), v))


class ClassBlock(nn.Module):
    """Class attention and an MLP for the class token; other tokens are only normalised and added to themselves."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        del train  # not needed here
        y = layer_norm(self.dtype, "norm1")(x)
        attended = ClassAttention(self.heads, self.dtype, name="attn")(y)
        x = x + layer_scale(self, "gamma1", 1.0, jnp.concatenate([attended, y[:, 1:]], axis=1))
        x = layer_norm(self.dtype, "norm2")(x)
        token = layer_scale(self, "gamma2", 1.0, FeedForward(self.dtype, name="mlp")(x[:, :1]))
        return x + jnp.concatenate([token, x[:, 1:]], axis=1)


class PatchEmbed(nn.Module):
    """3x3 convolutions with BatchNorm and GELU between them, each twice as wide as the previous one."""

    width: int
    patch_size: int
    convolutions: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        strides = convolution_strides(self.patch_size, self.convolutions, last=True)
        for index, stride in enumerate(strides):
            width = self.width // 2 ** (self.convolutions - 1 - index)
            x = nn.gelu(x, approximate=False) if index else x
            x = Conv(width, stride=stride, dtype=self.dtype, name=f"proj_{2 * index}_0")(x)
            x = BatchNorm(train, self.dtype, name=f"proj_{2 * index}_1")(x)
        return x


class Positions(nn.Module):
    """A learned projection of sines and cosines of row and column: `[1, H, W, D]`."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, height: int, width: int) -> Array:
        waves = jnp.asarray(position_waves(height, width), self.dtype)
        return Conv(self.width, 1, bias=True, dtype=self.dtype, name="token_projection")(waves[None])


def position_waves(height: int, width: int) -> np.ndarray:
    """Sines and cosines of each row, then of each column, of a grid: `[height, width, 2 * FREQUENCIES]`.

    The n positions are 2 pi / n to 2 pi; entries 2 i and 2 i + 1 are the sine and the cosine of the position divided by
    `TEMPERATURE ** (2 i / FREQUENCIES)`.

    >>> position_waves(4, 1)[:, 0, :2].round(3).tolist()
    [[1.0, 0.0], [0.0, -1.0], [-1.0, -0.0], [-0.0, 1.0]]
    """
    periods = TEMPERATURE ** (2 * (np.arange(FREQUENCIES) // 2) / FREQUENCIES)
    parts = []
    for count in (height, width):
        angles = np.arange(1, count + 1)[:, None] / (count + 1e-6) * 2 * math.pi / periods
        angles[:, 1::2] += math.pi / 2  # turns the sine into a cosine
        parts.append(np.sin(angles))
    rows, columns = (np.broadcast_to(part, (height, width, FREQUENCIES)) for part in (parts[0][:, None], parts[1]))
    return np.concatenate([rows, columns], axis=-1).astype(np.float32)


@model(
    "xcit",
    title="XCiT",
    summary="With width and depth from model.options.",
    paper="El-Nouby et al. (2021), arXiv:2106.09681",
)
@model(
    "xcit_l12",
    title="XCiT-L12",
    summary="Twelve blocks of width 768 with sixteen heads, and two for the class token.",
    paper="El-Nouby et al. (2021), arXiv:2106.09681; Debenedetti et al. (2022), arXiv:2209.07399",
    width=768,
    depth=12,
    heads=16,
)
@model(
    "xcit_m12",
    title="XCiT-M12",
    summary="Twelve blocks of width 512 with eight heads, and two for the class token.",
    paper="El-Nouby et al. (2021), arXiv:2106.09681; Debenedetti et al. (2022), arXiv:2209.07399",
    width=512,
    depth=12,
    heads=8,
)
@model(
    "xcit_s12",
    title="XCiT-S12",
    summary="Twelve blocks of width 384 with eight heads, and two for the class token.",
    paper="El-Nouby et al. (2021), arXiv:2106.09681; Debenedetti et al. (2022), arXiv:2209.07399",
    width=384,
    depth=12,
    heads=8,
)
class XCiT(nn.Module):
    """A stem of convolutions and positions; blocks; a class token and blocks for it; LayerNorm, linear on the token.

    Parameters are named as in timm: `blocks_0/attn/temperature` is its `blocks.0.attn.temperature`. There is no
    dropout; without `drop_path` training and evaluation differ only in BatchNorm.

    Attributes:
      num_classes: K.
      width: D, width of each token: 384, 512, 768 in xcit_s12, xcit_m12, xcit_l12.
      depth: number of blocks.
      class_depth: number of blocks for the class token.
      heads: number of heads; each has width D / heads.
      patch_size: side in pixels of the area of a token, a power of two; it must divide the images' sides. 16 for images
        of 224 pixels; 4 for 32, as in the robust XCiTs for CIFAR.
      convolutions: number of convolutions in the stem: 4 in timm's networks with 16-pixel patches and 3 with 8-pixel
        patches; the last ones have stride 2.
      drop_path: stochastic depth's rate in [0, 1), the same in all blocks except those of the class token, as in timm.
      remat: whether the gradient recomputes each block instead of keeping its activations.
      mean, std: input normalisation per channel, inside the model; () for none.
      dtype: activations; weights, softmax and the norms' statistics stay float32.

    Source: El-Nouby et al. (2021), arXiv:2106.09681, as built by timm: LayerNorm's epsilon is 1e-6, GELU is exact,
    layer scales start at 1, and all tokens are normalised in the blocks for the class token.
    """

    num_classes: int
    width: int = 384
    depth: int = 12
    class_depth: int = 2
    heads: int = 8
    patch_size: int = 16
    convolutions: int = 4
    drop_path: float = 0.0
    remat: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        check_heads(self.width, self.heads, self.depth)
        check_count("patch_size", self.patch_size, 1)
        check_patches(images, self.patch_size)
        x = normalize(images, self.mean, self.std, self.dtype)
        x = PatchEmbed(self.width, self.patch_size, self.convolutions, self.dtype, name="patch_embed")(x, train)
        x = x + Positions(self.width, self.dtype, name="pos_embed")(*x.shape[1:3])
        block = remat_block(Block) if self.remat else Block
        class_block = remat_block(ClassBlock) if self.remat else ClassBlock
        for index, factors in enumerate(branch_factors(self, (self.drop_path,) * self.depth, 3)):
            x = block(self.heads, self.dtype, name=f"blocks_{index}")(x, train, factors)
        x = x.reshape(x.shape[0], -1, self.width)
        x = prepend(self.param("cls_token", small_normal, (1, 1, self.width)), x)
        for index in range(self.class_depth):
            x = class_block(self.heads, self.dtype, name=f"cls_attn_blocks_{index}")(x, train)
        return classify(x, self.num_classes, self.dtype)
