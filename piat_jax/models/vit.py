"""Vision Transformers (Dosovitskiy et al., 2021; DeiT, Touvron et al., 2021), with gates on attention branches."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_count, check_patches
from piat_jax.core.forward import ATTENTION_GATES
from piat_jax.core.types import Array
from piat_jax.models.layers import layer_norm, normalize, small_normal, torch_bias, torch_uniform
from piat_jax.models.registry import model
from piat_jax.models.stems import ConvStem, convolution_strides
from piat_jax.models.stochastic_depth import branch_factors, kept, rising_rates


class PatchProjection(nn.Module):
    """A convolution whose stride equals its window, as one matrix product: `[B, H, W, C] -> [B, N, D]`, row by row.

    The product equals the convolution, and XLA:CPU runs it at full speed inside loops, gradients included.
    """

    features: int
    patch_size: int
    dtype: Any
    kernel_init: nn.initializers.Initializer = torch_uniform  # PyTorch's default, which ViTs keep for convolutions
    zero_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        size = self.patch_size
        shape = (size, size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias_init = nn.initializers.zeros if self.zero_bias else torch_bias(math.prod(shape[:-1]))
        bias = self.param("bias", bias_init, (self.features,))
        x = x.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
        x = x.reshape(batch, -1, math.prod(shape[:-1]))
        return x @ kernel.astype(self.dtype).reshape(-1, self.features) + bias.astype(self.dtype).reshape(1, 1, -1)


class PatchEmbed(nn.Module):
    """The image as tokens, made by one layer with timm's name, or by a stem of convolutions if `stem_width` is set."""

    features: int
    patch_size: int
    dtype: Any
    stem_width: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_count("patch_size", self.patch_size, 1)
        check_patches(x, self.patch_size)
        if self.stem_width:
            halvings = self.patch_size.bit_length() - 1
            widths = tuple(self.stem_width * 2**index for index in range(halvings))
            strides = convolution_strides(self.patch_size, halvings)
            x = ConvStem(widths, strides, self.features, self.dtype, name="proj")(x)
            return x.reshape(len(x), -1, self.features)
        return PatchProjection(self.features, self.patch_size, self.dtype, name="proj")(x)


def dense(features: int, dtype: Any, name: str, *, bias: bool = True) -> nn.Dense:
    """A dense layer with the originals' initialisation."""
    return nn.Dense(features, use_bias=bias, kernel_init=small_normal, dtype=dtype, name=name)


def attention_weights(queries: Array, keys: Array) -> Array:
    """`softmax_k(q k / sqrt(D / H))` of `[B, N, H, D / H]`: `[B, H, N, N]`, always in float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * queries.shape[-1] ** -0.5, axis=-1)


def attend(weights: Array, values: Array) -> Array:
    """The values `[B, N, H, D / H]` under `weights[B, H, N, N]`, heads joined: `[B, N, D]`."""
    attended = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(values.dtype), values)
    return attended.reshape(*attended.shape[:2], -1)


class Attention(nn.Module):
    """Multi-head self-attention with one layer for queries, keys and values."""

    heads: int
    dtype: Any
    qkv_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, tokens, width = x.shape
        qkv = dense(3 * width, self.dtype, "qkv", bias=self.qkv_bias)(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        return dense(width, self.dtype, "proj")(attend(attention_weights(q, k), v))


class FeedForward(nn.Module):
    """`fc2(gelu(fc1(x)))` with the exact GELU, at four times the width."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = nn.gelu(dense(4 * x.shape[-1], self.dtype, "fc1")(x), approximate=False)
        return dense(x.shape[-1], self.dtype, "fc2")(hidden)


class Block(nn.Module):
    """`x + attention(norm1 x)`, then `x + mlp(norm2 x)`.

    Attributes:
      attention: the class of the attention branch.
      options: its attributes.
      dtype: activations.
      epsilon: LayerNorm's.
    """

    attention: type[nn.Module]
    options: tuple[tuple[str, Any], ...]
    dtype: Any
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array, keep: Array | None, factors: Array | None) -> Array:
        branch = self.attention(**dict(self.options), dtype=self.dtype, name="attn")
        a = branch(layer_norm(self.dtype, "norm1", self.epsilon)(x))
        if keep is not None:
            # A closed gate removes the branch's gradient and keeps its value.
            a = jnp.where(jnp.reshape(keep, (1,) * a.ndim), a, jax.lax.stop_gradient(a))
        x = x + kept(a, factors, 0)
        y = FeedForward(self.dtype, name="mlp")(layer_norm(self.dtype, "norm2", self.epsilon)(x))
        return x + kept(y, factors, 1)


def make_block(remat: bool) -> type[Block]:
    """The block class; with `remat` it keeps only its input for the gradient and recomputes the rest."""
    return nn.remat(Block) if remat else Block  # type: ignore[return-value]


def attention_gates(module: nn.Module, blocks: int) -> list[Array | None]:
    """Each block's gate, from the model state; None for each if the state has no gates (core/forward.py)."""
    if not module.has_variable(ATTENTION_GATES, "keep"):
        return [None] * blocks
    keep = module.get_variable(ATTENTION_GATES, "keep")
    if keep.shape != (blocks,):
        raise InputError(f"{ATTENTION_GATES} have shape {keep.shape}; this model has {blocks} attention branches")
    return [keep[index] for index in range(blocks)]


def position_embedding(module: nn.Module, tokens: int, width: int) -> Array:
    """The learned embedding `[1, tokens, width]`; the images at initialisation fix its length."""
    if module.has_variable("params", "pos_embed"):
        known = module.get_variable("params", "pos_embed").shape[1]
        if known != tokens:
            raise InputError(
                f"the images give {tokens} tokens, but the position embedding has {known}; give images of the size "
                "the model was initialised for, or resize the embedding with interop.surgery.adapt_positions"
            )
    return module.param("pos_embed", small_normal, (1, tokens, width))


def check_heads(width: int, heads: int, depth: int) -> None:
    """Raise InputError unless there is at least one block and the heads divide the width."""
    check_count("depth", depth, 1)
    check_count("heads", heads, 1)
    if width % heads:
        raise InputError(f"width={width} cannot be divided among heads={heads}")


@model(
    "vit",
    title="ViT",
    summary="With width and depth from model.options.",
    paper="Dosovitskiy et al. (2021), arXiv:2010.11929",
)
@model(
    "vit_base_convstem",
    title="ViT-B + ConvStem",
    summary="ViT-B with convolutions in place of patches, the first one 48 wide.",
    paper="Singh et al. (2023), arXiv:2303.01870",
    width=768,
    depth=12,
    heads=12,
    stem_width=48,
)
@model(
    "vit_small_convstem",
    title="ViT-S + ConvStem",
    summary="ViT-S with convolutions in place of patches, the first one 48 wide.",
    paper="Singh et al. (2023), arXiv:2303.01870",
    width=384,
    depth=12,
    heads=6,
    stem_width=48,
)
@model(
    "deit_small",
    title="DeiT-S",
    summary="ViT-S with another training recipe.",
    paper="Touvron et al. (2021), arXiv:2012.12877",
    width=384,
    depth=12,
    heads=6,
)
@model(
    "deit_tiny",
    title="DeiT-Ti",
    summary="ViT-Ti with another training recipe.",
    paper="Touvron et al. (2021), arXiv:2012.12877",
    width=192,
    depth=12,
    heads=3,
)
@model(
    "vit_large",
    title="ViT-L",
    summary="Twenty-four blocks of width 1024, with sixteen heads each.",
    paper="Dosovitskiy et al. (2021), arXiv:2010.11929",
    width=1024,
    depth=24,
    heads=16,
)
@model(
    "vit_base",
    title="ViT-B",
    summary="Twelve blocks of width 768, with twelve heads each.",
    paper="Dosovitskiy et al. (2021), arXiv:2010.11929",
    width=768,
    depth=12,
    heads=12,
)
@model(
    "vit_small",
    title="ViT-S",
    summary="Twelve blocks of width 384, with six heads each.",
    paper="Steiner et al. (2021), arXiv:2106.10270",
    width=384,
    depth=12,
    heads=6,
)
@model(
    "vit_tiny",
    title="ViT-Ti",
    summary="Twelve blocks of width 192, with three heads each.",
    paper="Steiner et al. (2021), arXiv:2106.10270",
    width=192,
    depth=12,
    heads=3,
)
class ViT(nn.Module):
    """Patches, a class token and positions; blocks of attention and MLP; LayerNorm, and linear on the class token.

    Parameters are named as in timm: `blocks_0/attn/qkv/kernel` is its `blocks.0.attn.qkv.weight`. There is no dropout;
    without `drop_path` training and evaluation are the same.

    Attributes:
      num_classes: K.
      width: D, width of each token: 192, 384, 768, 1024 in vit_tiny, vit_small, vit_base, vit_large.
      depth: number of blocks.
      heads: number of heads; each has width D / heads.
      patch_size: side of a patch in pixels; 4 for images of 32 pixels, 16 for 224. It must divide the images' sides.
      stem_width: 0 for patches; else 3x3 convolutions of stride 2 make the tokens, as many as reduce a patch to a
        pixel. The first has `stem_width` channels, and each later one twice as many as the previous.
      drop_path: stochastic depth's rate in the last block, in [0, 1); it rises linearly from 0 in the first block.
      remat: whether the gradient recomputes each block instead of keeping its activations.
      mean, std: input normalisation per channel, inside the model; () for none.
      dtype: activations; weights, softmax and LayerNorm's statistics stay float32.

    Source: Dosovitskiy et al. (2021), arXiv:2010.11929; DeiT, Touvron et al. (2021), arXiv:2012.12877, without
    distillation. As built by timm: LayerNorm's epsilon is 1e-6, and GELU is exact, while Google's JAX code uses the
    tanh approximation. `stem_width`: Singh et al. (2023), arXiv:2303.01870.
    """

    num_classes: int
    width: int = 192
    depth: int = 12
    heads: int = 3
    patch_size: int = 4
    stem_width: int = 0
    drop_path: float = 0.0
    remat: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    @property
    def attention_blocks(self) -> int:
        """The number of attention branches with a gate."""
        return self.depth

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        del train  # stochastic depth depends on the keys, which are only given in training
        check_heads(self.width, self.heads, self.depth)
        x = normalize(images, self.mean, self.std, self.dtype)
        x = PatchEmbed(self.width, self.patch_size, self.dtype, self.stem_width, name="patch_embed")(x)
        x = prepend(self.param("cls_token", small_normal, (1, 1, self.width)), x)
        x = x + position_embedding(self, x.shape[1], self.width).astype(self.dtype)
        factors = branch_factors(self, rising_rates(self.drop_path, self.depth), 2)
        for index, keep in enumerate(attention_gates(self, self.depth)):
            block = make_block(self.remat)(Attention, (("heads", self.heads),), self.dtype, name=f"blocks_{index}")
            x = block(x, keep, factors[index])
        return classify(x, self.num_classes, self.dtype)


def prepend(token: Array, x: Array) -> Array:
    """Put one more token `[1, 1, D]` before the tokens of each image."""
    return jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[2])), x], axis=1)


def classify(x: Array, num_classes: int, dtype: Any) -> Array:
    """LayerNorm and the head on the first token; call it inside a module, which owns the layers."""
    # Only the class token is needed, and LayerNorm treats each token separately.
    return dense(num_classes, dtype, "head")(layer_norm(dtype, "norm")(x[:, 0]))
