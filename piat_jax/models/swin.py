"""Swin Transformer (Liu et al., 2021): attention within windows, which are shifted in every other block."""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError, check_count, check_patches
from piat_jax.core.types import Array
from piat_jax.models.layers import layer_norm, normalize, small_normal
from piat_jax.models.registry import model
from piat_jax.models.stochastic_depth import branch_factors, rising_rates
from piat_jax.models.vit import PatchProjection, attention_gates, check_heads, dense, make_block

EPSILON = 1e-5  # of LayerNorm, PyTorch's default
APART = -100.0
"""Added to the scores of positions that only the shift brought next to each other."""


class WindowAttention(nn.Module):
    """Self-attention within windows of a grid `[B, H, W, D]`, with a learned score for each relative position.

    Windows at least as large as the grid are cut to the grid and not shifted. If windows do not divide the grid, it is
    padded with zeros below and to the right.
    """

    heads: int
    window: int
    shift: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, span, width = x.shape
        sizes = tuple(min(side, self.window) for side in (height, span))
        shifts = tuple(self.shift if side > self.window else 0 for side in (height, span))
        if any(shifts):
            x = jnp.roll(x, (-shifts[0], -shifts[1]), (1, 2))
        filled = tuple(-(-side // size) * size for side, size in zip((height, span), sizes))
        x = jnp.pad(x, ((0, 0), (0, filled[0] - height), (0, filled[1] - span), (0, 0)))
        tokens = sizes[0] * sizes[1]
        x = windows(x, sizes)
        qkv = dense(3 * width, self.dtype, "qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(-1, tokens, 3, self.heads, width // self.heads), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        scores = scores * (width // self.heads) ** -0.5 + self._bias(sizes)
        if any(shifts):
            apart = jnp.asarray(parted(filled, sizes, shifts))  # [windows, N, N]
            scores = scores.reshape(batch, -1, *scores.shape[1:]) + apart[None, :, None]
            scores = scores.reshape(-1, *scores.shape[2:])
        attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
        x = dense(width, self.dtype, "proj")(attended.reshape(-1, tokens, width))
        rows, columns = filled[0] // sizes[0], filled[1] // sizes[1]
        x = x.reshape(batch, rows, columns, *sizes, width).swapaxes(2, 3).reshape(batch, *filled, width)
        x = x[:, :height, :span]
        return jnp.roll(x, shifts, (1, 2)) if any(shifts) else x

    def _bias(self, sizes: tuple[int, ...]) -> Array:
        """The learned score of each pair of positions in a window, `[1, H, N, N]`."""
        name, shape = "relative_position_bias_table", ((2 * sizes[0] - 1) * (2 * sizes[1] - 1), self.heads)
        if self.has_variable("params", name) and self.get_variable("params", name).shape != shape:
            raise InputError(
                f"the images give windows of {sizes[0]}x{sizes[1]}, {shape[0]} relative positions, but the model has "
                f"{self.get_variable('params', name).shape[0]}; give images of the size it was initialised for"
            )
        table = self.param(name, small_normal, shape)
        return table[relative_places(sizes)].transpose(2, 0, 1)[None]


def windows(x: Array, sizes: tuple[int, ...]) -> Array:
    """Split `[B, H, W, D]` into windows, row by row: `[B * windows, N, D]`."""
    batch, height, span, width = x.shape
    x = x.reshape(batch, height // sizes[0], sizes[0], span // sizes[1], sizes[1], width).swapaxes(2, 3)
    return x.reshape(-1, sizes[0] * sizes[1], width)


def relative_places(sizes: tuple[int, ...]) -> np.ndarray:
    """The table row for each query and key of a window: `(dy + h - 1)(2 w - 1) + dx + w - 1`, `[N, N]`.

    >>> relative_places((1, 2)).tolist()
    [[1, 0], [2, 1]]
    """
    rows, columns = np.divmod(np.arange(sizes[0] * sizes[1]), sizes[1])
    dy, dx = (axis[:, None] - axis[None, :] for axis in (rows, columns))
    return (dy + sizes[0] - 1) * (2 * sizes[1] - 1) + dx + sizes[1] - 1


def parted(grid: tuple[int, ...], sizes: tuple[int, ...], shifts: tuple[int, ...]) -> np.ndarray:
    """The mask added to the scores in each window of a shifted grid: `APART` if two positions were not neighbours.

    >>> parted((1, 4), (1, 2), (0, 1))[:, 0].tolist()
    [[0.0, 0.0], [0.0, -100.0]]
    """
    # Along each axis, the last window has two parts: before and after the end of the grid.
    part = [
        (np.arange(side) >= side - size).astype(int) + (np.arange(side) >= side - shift)
        for side, size, shift in zip(grid, sizes, shifts)
    ]
    number = part[0][:, None] * 3 + part[1][None, :]
    rows, columns = grid[0] // sizes[0], grid[1] // sizes[1]
    number = number.reshape(rows, sizes[0], columns, sizes[1]).swapaxes(1, 2).reshape(rows * columns, -1)
    return np.where(number[:, :, None] != number[:, None, :], APART, 0).astype(np.float32)


class PatchEmbed(nn.Module):
    """The image as a grid of tokens, `[B, H / p, W / p, D]`, after LayerNorm."""

    width: int
    patch_size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_count("patch_size", self.patch_size, 1)
        check_patches(x, self.patch_size)
        batch, height, span, _ = x.shape
        x = PatchProjection(self.width, self.patch_size, self.dtype, name="proj")(x)
        x = x.reshape(batch, height // self.patch_size, span // self.patch_size, self.width)
        return layer_norm(self.dtype, "norm", EPSILON)(x)


class PatchMerging(nn.Module):
    """Merges 2x2 neighbouring tokens into one token with twice the width."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, span, width = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, span % 2), (0, 0)))
        x = x.reshape(batch, (height + 1) // 2, 2, (span + 1) // 2, 2, width).transpose(0, 1, 3, 4, 2, 5)
        x = layer_norm(self.dtype, "norm", EPSILON)(x.reshape(*x.shape[:3], 4 * width))
        return dense(2 * width, self.dtype, "reduction", bias=False)(x)


class Layer(nn.Module):
    """A stage: patch merging except in the first stage, then blocks, every other one with shifted windows."""

    heads: int
    window: int
    merged: bool
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, gates: tuple[Array | None, ...], factors: tuple[Array | None, ...]) -> Array:
        if self.merged:
            x = PatchMerging(self.dtype, name="downsample")(x)
        for index, keep in enumerate(gates):
            shift = self.window // 2 if index % 2 else 0
            options = (("heads", self.heads), ("window", self.window), ("shift", shift))
            block = make_block(self.remat)(WindowAttention, options, self.dtype, EPSILON, name=f"blocks_{index}")
            x = block(x, keep, factors[index])
        return x


class Head(nn.Module):
    """The mean over all tokens, linear."""

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.mean(axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        return dense(self.num_classes, self.dtype, "fc")(x)


@model(
    "swin",
    title="Swin",
    summary="With width and depth from model.options.",
    paper="Liu et al. (2021), arXiv:2103.14030",
)
@model(
    "swin_large",
    title="Swin-L",
    summary="Stages of 2, 2, 18 and 2 blocks, starting at width 192 with six heads.",
    paper="Liu et al. (2021), arXiv:2103.14030",
    width=192,
    depths=(2, 2, 18, 2),
    heads=(6, 12, 24, 48),
)
@model(
    "swin_base",
    title="Swin-B",
    summary="Stages of 2, 2, 18 and 2 blocks, starting at width 128 with four heads.",
    paper="Liu et al. (2021), arXiv:2103.14030",
    width=128,
    depths=(2, 2, 18, 2),
    heads=(4, 8, 16, 32),
)
@model(
    "swin_small",
    title="Swin-S",
    summary="Stages of 2, 2, 18 and 2 blocks, starting at width 96 with three heads.",
    paper="Liu et al. (2021), arXiv:2103.14030",
    width=96,
    depths=(2, 2, 18, 2),
    heads=(3, 6, 12, 24),
)
@model(
    "swin_tiny",
    title="Swin-T",
    summary="Stages of 2, 2, 6 and 2 blocks, starting at width 96 with three heads.",
    paper="Liu et al. (2021), arXiv:2103.14030",
    width=96,
    depths=(2, 2, 6, 2),
    heads=(3, 6, 12, 24),
)
class Swin(nn.Module):
    """Patches, stages that halve the grid and double the width, LayerNorm, mean, linear.

    Parameters are named as in timm: `layers_0/blocks_1/attn/qkv/kernel` is its `layers.0.blocks.1.attn.qkv.weight`.
    There is no dropout; without `drop_path` training and evaluation are the same.

    Attributes:
      num_classes: K.
      width: D, width of each token in the first stage: 96 in swin_tiny.
      depths: blocks per stage.
      heads: heads per stage.
      window: side of a window in tokens; 7 for images of 224 pixels, 4 or 8 for 32.
      patch_size: side of a patch in pixels; 4 for images of 224 pixels, 1 or 2 for 32. It must divide the images'
        sides.
      drop_path: stochastic depth's rate in the last block, in [0, 1); it rises linearly from 0 in the first block.
      remat: whether the gradient recomputes each block instead of keeping its activations.
      mean, std: input normalisation per channel, inside the model; () for none.
      dtype: activations; weights, softmax and LayerNorm's statistics stay float32.

    Source: Liu et al. (2021), arXiv:2103.14030, as built by timm: LayerNorm's epsilon is 1e-5, GELU is exact.
    """

    num_classes: int
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    patch_size: int = 4
    drop_path: float = 0.0
    remat: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    @property
    def attention_blocks(self) -> int:
        """The number of attention branches with a gate."""
        return sum(self.depths)

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        del train  # stochastic depth depends on the keys, which are only given in training
        if len(self.depths) != len(self.heads):
            raise InputError(f"heads={self.heads} must have one number for each of depths={self.depths}")
        check_count("window", self.window, 1)
        x = normalize(images, self.mean, self.std, self.dtype)
        x = PatchEmbed(self.width, self.patch_size, self.dtype, name="patch_embed")(x)
        gates = iter(attention_gates(self, self.attention_blocks))
        rates = rising_rates(self.drop_path, sum(self.depths))
        factors = iter(branch_factors(self, rates, 2))
        for index, (depth, heads) in enumerate(zip(self.depths, self.heads)):
            check_heads(self.width * 2**index, heads, depth)
            layer = Layer(heads, self.window, index > 0, self.remat, self.dtype, name=f"layers_{index}")
            x = layer(x, *(tuple(itertools.islice(each, depth)) for each in (gates, factors)))
        return Head(self.num_classes, self.dtype, name="head")(layer_norm(self.dtype, "norm", EPSILON)(x))
