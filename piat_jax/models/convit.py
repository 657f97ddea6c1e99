"""ConViT (d'Ascoli et al., 2021): a Vision Transformer whose first blocks can attend by position."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError, check_range
from piat_jax.core.types import Array
from piat_jax.models.layers import normalize
from piat_jax.models.registry import model
from piat_jax.models.stochastic_depth import branch_factors, rising_rates
from piat_jax.models.vit import (
    Attention,
    PatchEmbed,
    attend,
    attention_gates,
    attention_weights,
    check_heads,
    classify,
    dense,
    make_block,
    position_embedding,
    prepend,
    small_normal,
)


class GatedPositionalAttention(nn.Module):
    """GPSA: in each head, a mixture of attention by content and by relative position; no class token, square images.

    `A_h = (1 - s_h) softmax_q(Q_h K_h / sqrt(D / H)) + s_h softmax_q(w_h R_pq + b_h)`, rows rescaled to sum 1, with
    `s_h = sigmoid(gating_h)` and `R_pq = (dx, dy, dx^2 + dy^2)` in patches from p to q.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, tokens, width = x.shape
        head_width = width // self.heads
        qk = dense(2 * width, self.dtype, "qk", bias=False)(x)
        q, k = jnp.moveaxis(qk.reshape(batch, tokens, 2, self.heads, head_width), 2, 0)
        values = nn.Dense(width, use_bias=False, kernel_init=_identity, dtype=self.dtype, name="v")(x)
        # In float32, because it is small and the same for all images.
        positions = nn.Dense(self.heads, kernel_init=_local, name="pos_proj")(relative_positions(tokens))
        by_position = jax.nn.softmax(positions.transpose(2, 0, 1), axis=-1)[None]
        share = jax.nn.sigmoid(self.param("gating_param", nn.initializers.ones, (self.heads,), jnp.float32)).reshape(
            1, -1, 1, 1
        )
        weights = (1.0 - share) * attention_weights(q, k) + share * by_position
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        attended = attend(weights, values.reshape(batch, tokens, self.heads, head_width))
        return dense(width, self.dtype, "proj")(attended)


def relative_positions(tokens: int) -> Array:
    """`R[p, q] = (dx, dy, dx^2 + dy^2)` from token p to token q of a square grid, row by row: `[N, N, 3]`.

    >>> relative_positions(4)[1].tolist()
    [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 1.0, 2.0], [0.0, 1.0, 1.0]]
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise InputError(f"ConViT needs a square grid, but the images have {tokens} patches; give square images")
    rows, columns = np.divmod(np.arange(tokens), side)
    dy, dx = (axis[None, :] - axis[:, None] for axis in (rows, columns))
    return jnp.asarray(np.stack([dx, dy, dx**2 + dy**2], axis=-1), jnp.float32)


def _identity(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return jnp.eye(*shape, dtype=dtype)


def _local(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Each head attends to one position of a square around a token; heads beyond the square stay random."""
    heads = shape[1]
    side = math.isqrt(heads)
    centre = (side - 1) / 2 if side % 2 == 0 else side // 2
    rows, columns = np.divmod(np.arange(side * side), side)
    local = np.stack([2 * (rows - centre), 2 * (columns - centre), np.full(side * side, -1.0)])
    return small_normal(key, shape, dtype).at[:, : side * side].set(local.astype(dtype))


@model(
    "convit",
    title="ConViT",
    summary="With width and depth from model.options.",
    paper="d'Ascoli et al. (2021), arXiv:2103.10697",
)
@model(
    "convit_base",
    title="ConViT-B",
    summary="Ten blocks that can attend by position and two ordinary ones, of width 768.",
    paper="d'Ascoli et al. (2021), arXiv:2103.10697",
    width=768,
    depth=12,
    local_depth=10,
    heads=16,
)
@model(
    "convit_small",
    title="ConViT-S",
    summary="Ten blocks that can attend by position and two ordinary ones, of width 432.",
    paper="d'Ascoli et al. (2021), arXiv:2103.10697",
    width=432,
    depth=12,
    local_depth=10,
    heads=9,
)
@model(
    "convit_tiny",
    title="ConViT-Ti",
    summary="Ten blocks that can attend by position and two ordinary ones, of width 192.",
    paper="d'Ascoli et al. (2021), arXiv:2103.10697",
    width=192,
    depth=12,
    local_depth=10,
    heads=4,
)
class ConViT(nn.Module):
    """Patches and positions; GPSA blocks, a class token, ordinary blocks; LayerNorm, and linear on the class token.

    Parameters are named as in timm: `blocks_0/attn/pos_proj/kernel` is its `blocks.0.attn.pos_proj.weight`. There is no
    dropout; without `drop_path` training and evaluation are the same.

    Attributes:
      num_classes: K.
      width: D, width of each token: 192, 432, 768 in convit_tiny, convit_small, convit_base.
      depth: number of blocks.
      local_depth: number of GPSA blocks, which come first: 10 of 12. The class token is added after them.
      heads: 4, 9, 16; each has width D / heads.
      patch_size: side of a patch in pixels; 4 for images of 32 pixels, 16 for 224. It must divide the images' sides.
      drop_path: stochastic depth's rate in the last block, in [0, 1); it rises linearly from 0 in the first block.
      remat: whether the gradient recomputes each block instead of keeping its activations.
      mean, std: input normalisation per channel, inside the model; () for none.
      dtype: activations; weights, softmax and LayerNorm's statistics stay float32.

    Source: d'Ascoli et al. (2021), arXiv:2103.10697, and its code, as built by timm: layers for queries, keys and
    values have no bias, and the class token has no position.
    """

    num_classes: int
    width: int = 192
    depth: int = 12
    local_depth: int = 10
    heads: int = 4
    patch_size: int = 4
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
        # At least one block must follow, in which the class token attends to the image.
        check_range("local_depth", self.local_depth, 0, self.depth - 1)
        x = normalize(images, self.mean, self.std, self.dtype)
        x = PatchEmbed(self.width, self.patch_size, self.dtype, name="patch_embed")(x)
        x = x + position_embedding(self, x.shape[1], self.width).astype(self.dtype)
        class_token = self.param("cls_token", small_normal, (1, 1, self.width))
        factors = branch_factors(self, rising_rates(self.drop_path, self.depth), 2)
        for index, keep in enumerate(attention_gates(self, self.depth)):
            if index == self.local_depth:
                x = prepend(class_token, x)
            local = index < self.local_depth
            attention, bias = (GatedPositionalAttention, ()) if local else (Attention, (("qkv_bias", False),))
            options = (("heads", self.heads), *bias)
            block = make_block(self.remat)(attention, options, self.dtype, name=f"blocks_{index}")
            x = block(x, keep, factors[index])
        return classify(x, self.num_classes, self.dtype)
