"""Adapt pretrained transformers to other images (patches, positions, windows, head), and read Google's weight files.

Everything works on flat dicts of arrays by path, such as `blocks_0/attn/qkv/kernel`.
"""

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.rng import flat_draw, named_key
from piat_jax.core.types import Array
from piat_jax.interop.tensors import with_bfloat16

Weights = Mapping[str, np.ndarray]
PATCHES, POSITIONS, HEAD = "patch_embed/proj/kernel", "pos_embed", ("head/kernel", "head/bias")


def adapt_patch_kernel(kernel: np.ndarray, patch_size: int) -> np.ndarray:
    """Shrink the kernel to smaller patches by summing weights: `[P, P, C, D] -> [p, p, C, D]`.

    A small patch then has the same token as its image with every pixel repeated P / p times in each direction.

    Args:
      kernel: `[P, P, C, D]`.
      patch_size: p, a divisor of P; 4 for 16.

    Raises:
      InputError: p does not divide P.

    Source: the code of Mo et al. (2022), arXiv:2210.07540.

    >>> adapt_patch_kernel(np.arange(16.0).reshape(4, 4, 1, 1), 2)[..., 0, 0].tolist()
    [[10.0, 18.0], [42.0, 50.0]]
    """
    size = kernel.shape[0]
    if patch_size < 1 or size % patch_size or kernel.shape[1] != size:
        raise InputError(f"patch_size={patch_size} must divide the kernel's {kernel.shape[0]}x{kernel.shape[1]} pixels")
    each = size // patch_size
    return kernel.reshape(patch_size, each, patch_size, each, *kernel.shape[2:]).sum((1, 3))


def adapt_positions(positions: np.ndarray, patches: int, *, class_token: bool) -> np.ndarray:
    """Interpolate a position embedding to another square grid, bilinearly between patch centres: `[1, (1) + N, D]`.

    Place i of n is read at `(i + 1/2) N / n - 1/2` of the old N, clamped to the grid, without smoothing for a coarser
    grid: PyTorch's `interpolate(mode="bilinear", align_corners=False)`.

    Args:
      positions: `[1, N, D]`, or `[1, 1 + N, D]` with the class token's first, which is kept.
      patches: n, number of patches of the new images; a square number, like N.
      class_token: whether they include a class token: in ViT and DeiT, not in ConViT.

    Raises:
      InputError: a grid is not square.

    Source: the code of Mo et al. (2022), arXiv:2210.07540.

    >>> adapt_positions(np.arange(4.0).reshape(1, 4, 1), 1, class_token=False).ravel().tolist()
    [1.5]
    """
    first, grid = positions[:, : int(class_token)], positions[0, int(class_token) :]
    old, new = _side(len(grid)), _side(patches)
    read = _bilinear(old, new)
    grid = np.einsum("ai,bj,ijd->abd", read, read, grid.reshape(old, old, -1).astype(np.float64))
    return np.concatenate([first, grid.reshape(1, patches, -1).astype(positions.dtype)], axis=1)


def _side(patches: int) -> int:
    side = math.isqrt(patches)
    if side * side != patches:
        raise InputError(f"{patches} positions are not a square grid; give square images, and the model's class_token")
    return side


def _bilinear(old: int, new: int) -> np.ndarray:
    """Weights `[new, old]` of the old places in each new place."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(centres[:, None] - np.arange(old)[None]), 0)


def adapt_bias_table(table: np.ndarray, rows: int) -> np.ndarray:
    """Interpolate Swin's relative position biases to another window, bicubically: `[(2 M - 1)^2, H] -> [rows, H]`.

    Place i of n is read at `(i + 1/2) N / n - 1/2` of the old N, with repeated edges, by Keys' kernel with a = -3/4:
    PyTorch's `interpolate(mode="bicubic", align_corners=False)`.

    Args:
      table: for windows with a side of M tokens, row by row.
      rows: `(2 m - 1)^2`, for the new windows.

    Raises:
      InputError: windows are not square.

    Source: the code of Liu et al. (2021), arXiv:2103.14030. timm uses a grid of growing steps instead, as BEiT does.

    >>> adapt_bias_table(np.arange(9.0).reshape(9, 1), 1).tolist()
    [[4.0]]
    """
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    if old * old != len(table) or new * new != rows:
        raise InputError(f"a table of {len(table)} relative positions for {rows}: windows must be square")
    read = _bicubic(old, new)
    grid = np.einsum("ai,bj,ijh->abh", read, read, table.reshape(old, old, -1).astype(np.float64))
    return grid.reshape(rows, -1).astype(table.dtype)


def _bicubic(old: int, new: int) -> np.ndarray:
    """Weights `[new, old]` of the old places in each new place."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        place = np.floor(centres) + tap
        distance = np.abs(centres - place)
        near = 1.25 * distance**3 - 2.25 * distance**2 + 1  # (a + 2) d^3 - (a + 3) d^2 + 1
        far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        np.add.at(
            weights,
            (np.arange(new), np.clip(place, 0, old - 1).astype(int)),
            np.where(distance <= 1, near, far),
        )
    return weights


def adapt_vit(weights: Weights, shapes: Mapping[str, tuple[int, ...]], *, key: Array) -> dict[str, np.ndarray]:
    """Adapt the weights of a ViT or ConViT to other patches, images or classes; fitting weights are kept bit by bit.

    Args:
      weights: arrays by path, from the pretrained network.
      shapes: of the new network, by the same paths.
      key: for a new head, N(0, 0.02^2) with bias 0, if the number of classes differs or `weights` have no head.

    Returns:
      An array for each of `shapes`.

    Raises:
      InputError: paths are missing or unexpected, or shapes other than those of patches, positions and head differ;
        the message lists all of them.
    """
    found = [f"{path} is missing" for path in shapes if path not in weights and path not in HEAD]
    found += [f"{path} is not in this model" for path in weights if path not in shapes]
    # The head is either kept or new, as a whole.
    new_head = any(path not in weights or weights[path].shape != shapes[path] for path in HEAD if path in shapes)
    adapted = {}
    for path, shape in shapes.items():
        if path in HEAD and new_head:
            adapted[path] = _new_head(path, shape, key)
            continue
        if path not in weights:
            continue
        value = weights[path]
        if path == PATCHES and value.shape != shape:
            value = adapt_patch_kernel(value, shape[0])
        elif path == POSITIONS and value.shape != shape:
            # The class token has a position if the number of tokens is a square plus one.
            class_token = math.isqrt(shape[1]) ** 2 != shape[1]
            value = adapt_positions(value, shape[1] - class_token, class_token=class_token)
        if value.shape != shape:
            found.append(f"{path} has shape {list(value.shape)}; this model has {list(shape)}")
        adapted[path] = value
    if found:
        raise InputError("the weights do not fit the model:\n  " + "\n  ".join(sorted(found)))
    return adapted


def _new_head(path: str, shape: tuple[int, ...], key: Array) -> np.ndarray:
    if path.endswith("bias"):
        return np.zeros(shape, np.float32)
    return np.asarray(0.02 * flat_draw(jax.random.normal, named_key(key, path), shape, jnp.float32))


# Google's name in a block -> ours; queries, keys and values are combined.
BLOCK = {
    "MlpBlock/Dense_0": "mlp/fc1",
    "MlpBlock/Dense_1": "mlp/fc2",
    "MultiHeadDotProductAttention/out": "attn/proj",
}
QKV = ("query", "key", "value")
OUTSIDE = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed/proj/kernel",
    "embedding/bias": "patch_embed/proj/bias",
    "Transformer/posembed_input/pos_embedding": POSITIONS,
    "pos_embedding": POSITIONS,
    "Transformer/encoder_norm/scale": "norm/scale",
    "Transformer/encoder_norm/bias": "norm/bias",
    "head/kernel": "head/kernel",
    "head/bias": "head/bias",
}


def google_npz_to_tree(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translate the weights in Google's ViT files to our paths; nothing is resized.

    Supported are the files of the paper and of AugReg
    (`Transformer/encoderblock_0/MultiHeadDotProductAttention_1/...`) and those of big_vision (`..._0/...`, blocks
    possibly stacked on a leading axis, bfloat16 as raw bytes, positions of patches only). Prefixes such as
    `opt/target/` and `params/img/` are removed, and `pre_logits` is dropped.

    Args:
      arrays: the arrays from `np.load`, by name.

    Returns:
      Arrays by path, float32. The head is absent if the model has none, as after pretraining.

    Raises:
      InputError: names are unknown, such as those of models with another pooling; the message lists all.

    Source: Dosovitskiy et al. (2021), arXiv:2010.11929; AugReg: Steiner et al. (2022), arXiv:2106.10270. Google's code
    uses GELU's approximation by tanh; ours uses exact GELU, as timm does for the same files.
    """
    tree: dict[str, np.ndarray] = {}
    blocks: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for name, value in _unstacked({_without_prefix(name): _float32(value) for name, value in arrays.items()}).items():
        block = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)", name)
        if block:
            blocks.setdefault(f"blocks_{block[1]}", {})[block[2]] = value
        elif name in OUTSIDE:
            tree[OUTSIDE[name]] = value
        elif not name.startswith("pre_logits/"):
            unknown.append(name)
    for ours, block in blocks.items():
        named, strange = _block(block)
        tree |= {f"{ours}/{path}": value for path, value in named.items()}
        unknown += [f"{ours}: {name}" for name in strange]
    if unknown or not blocks:
        listed = ", ".join(sorted(unknown)) or "no encoderblock"
        raise InputError(f"this is not a supported file of a ViT with a class token: {listed}")
    if "Transformer/posembed_input/pos_embedding" not in map(_without_prefix, arrays) and POSITIONS in tree:
        # big_vision adds no position to the class token.
        tree[POSITIONS] = np.concatenate([np.zeros_like(tree[POSITIONS][:, :1]), tree[POSITIONS]], axis=1)
    return tree


def _without_prefix(name: str) -> str:
    while shorter := next((name.removeprefix(p) for p in ("opt/target/", "params/", "img/") if name.startswith(p)), ""):
        name = shorter
    return name


def _float32(value: np.ndarray) -> np.ndarray:
    return np.asarray(with_bfloat16(value), np.float32)


def _unstacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split blocks that a scan stacked on a leading axis."""
    single = {}
    for name, value in arrays.items():
        if name.startswith("Transformer/encoderblock/"):
            rest = name.removeprefix("Transformer/encoderblock/")
            single |= {f"Transformer/encoderblock_{index}/{rest}": layer for index, layer in enumerate(value)}
        else:
            single[name] = value
    return single


def _block(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """One block by our names, and its unknown names."""
    # The number in a layer's name counts all layers in one generation of files, and those of its type in the other.
    arrays = {re.sub(r"(MlpBlock|MultiHeadDotProductAttention)_\d+", r"\1", name): v for name, v in arrays.items()}
    norms = sorted({name.partition("/")[0] for name in arrays if name.startswith("LayerNorm_")})
    places = BLOCK | dict(zip(norms, ("norm1", "norm2")))
    named, strange, qkv = {}, [], {}
    for name, value in arrays.items():
        layer, _, leaf = name.rpartition("/")
        if layer.rpartition("/")[2] in QKV:
            qkv[layer.rpartition("/")[2], leaf] = value.reshape(len(value), -1) if leaf == "kernel" else value.ravel()
        elif layer in places:
            width = value.shape[-1]
            named[f"{places[layer]}/{leaf}"] = value.reshape(-1, width) if leaf == "kernel" else value
        else:
            strange.append(name)
    for leaf in {leaf for _, leaf in qkv}:
        if missing := [kind for kind in QKV if (kind, leaf) not in qkv]:
            strange += [f"{kind}/{leaf} is missing" for kind in missing]
        else:
            named[f"attn/qkv/{leaf}"] = np.concatenate([qkv[kind, leaf] for kind in QKV], axis=-1)
    return named, strange
