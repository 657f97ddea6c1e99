"""Identify the network of some weights by their keys and shapes."""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.interop.dialects import translated
from piat_jax.interop.names import flatten, is_head, network_of, to_torch, torch_key
from piat_jax.models import MODELS, create

# Class of a network -> keys that its files have at any size. The first class whose keys all exist is chosen.
SIGNS: dict[str, tuple[str, ...]] = {
    "ImageNetResNet": ("layer1.0.conv1.weight", "layer1.0.bn2.weight", "fc.weight"),
    "ResNet": ("layer1.0.conv1.weight", "linear.weight"),
    "WideResNet": ("block1.layer.0.conv1.weight", "fc.weight"),
    "SwishWideResNet": ("layer.0.block.0.conv_0.weight", "logits.weight"),
    "SwishPreActResNet": ("layer_0.0.conv_2d_1.weight", "logits.weight"),
    "ConViT": ("blocks.0.attn.gating_param", "patch_embed.proj.weight"),
    "XCiT": ("blocks.0.attn.temperature", "pos_embed.token_projection.weight"),
    "ConvNeXt": ("stages.0.blocks.0.conv_dw.weight",),
    "Swin": ("layers.0.blocks.0.attn.relative_position_bias_table", "patch_embed.proj.weight"),
    "ViT": ("blocks.0.attn.qkv.weight", "cls_token", "pos_embed"),
}

PATCHES = "patch_embed.proj.weight"
PATCH_KERNELS = re.compile(r"patch_embed\.proj\.weight|(?:.*/)?embedding/kernel")
STEM_KERNELS = re.compile(r"patch_embed\.proj\.stem\.\d+\.weight")
POSITIONS = re.compile(r"pos_embed|(?:.*/)?pos_embedding")
STAGE_BLOCK = re.compile(r"(?:stages|layers)\.(\d+)\.blocks\.(\d+)\.")
TABLE = re.compile(r"layers\.\d+\.blocks\.0\.attn\.relative_position_bias_table")


class Lookalike(NamedTuple):
    """The network that weights seem to belong to."""

    network: str  # its class
    names: tuple[str, ...]  # networks of `MODELS` with the same tensors; empty if none has these sizes
    options: Mapping[str, Any]  # required arguments of `create`: classes, patches, ...

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in self.options.items())
        if self.names:
            return f"it looks like {' or '.join(self.names)} with {told}; give the model this name (--model)"
        known = [name for name, (module, _) in MODELS.items() if module.__name__ == self.network]
        return f"it looks like a {self.network}, but none of these has its sizes: {', '.join(known)}"


def lookalike(arrays: Mapping[str, np.ndarray]) -> Lookalike | None:
    """Identify the network of some tensors; None if no supported network has such keys.

    Args:
      arrays: tensors by the file's keys, without prefixes and without unused tensors.
    """
    for network, signs in SIGNS.items():
        found, _ = translated(network, arrays)
        if all(sign in found for sign in signs):
            break
    else:
        return None
    shapes = {key: tuple(values.shape) for key, values in found.items()}
    options, side = read_sizes(network, shapes)
    names = [name for name, (module, _) in MODELS.items() if module.__name__ == network]
    return Lookalike(network, tuple(name for name in names if _fits(name, options, side, shapes)), options)


def is_head_key(key: str) -> bool:
    """Whether a published key belongs to the last layer.

    >>> is_head_key("head.fc.weight"), is_head_key("head.norm.weight"), is_head_key("fc.bias")
    (True, False, True)
    """
    return is_head("params/" + key.replace(".", "/"))


def read_sizes(network: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], int]:
    """Options of `create` and image size (0 = unknown) of a network of this class, from its tensors' shapes.

    Args:
      network: the class.
      shapes: by our published keys, or Google's.

    >>> read_sizes("ViT", {"patch_embed.proj.weight": (8, 3, 4, 4), "pos_embed": (1, 65, 8), "head.bias": (10,)})
    ({'num_classes': 10, 'patch_size': 4}, 32)
    """
    heads = [shape[0] for key, shape in shapes.items() if is_head_key(key) and key.endswith("bias")]
    options: dict[str, Any] = {"num_classes": heads[0]} if len(heads) == 1 else {}
    if network in ("ViT", "ConViT"):
        patch_size, side = _of_tokens(shapes)
        return options | ({"patch_size": patch_size} if patch_size else {}), side
    tables = [key for key in shapes if TABLE.fullmatch(key)]
    if network == "Swin" and tables and PATCHES in shapes:
        window, patch_size = (round(shapes[tables[0]][0] ** 0.5) + 1) // 2, shapes[PATCHES][2]
        layers = len({key.split(".")[1] for key in tables})
        found = {name: value for name, value in (("window", window), ("patch_size", patch_size)) if value}
        return options | found, patch_size * window * 2 ** (layers - 1)
    if network == "ConvNeXt" and "stem.0.weight" in shapes:
        options["stem_stride"] = shapes["stem.0.weight"][2]
    return options, 0


def _of_tokens(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """The patch size and the image size of a Vision Transformer; 0 if unknown."""
    patches = [shape for name, shape in shapes.items() if PATCH_KERNELS.fullmatch(name) and len(shape) == 4]
    positions = [shape for name, shape in shapes.items() if POSITIONS.fullmatch(name) and len(shape) == 3]
    stem = [name for name, shape in shapes.items() if STEM_KERNELS.fullmatch(name) and len(shape) == 4]
    if not patches and not stem:
        return 0, 0
    # Each convolution of a stem except the last one halves the image.
    patch_size = 2 ** (len(stem) - 1)
    if patches:
        patch_size = patches[0][2] if patches[0][2] == patches[0][3] else patches[0][0]  # Google's have the patch first
    tokens = positions[0][1] if positions else 0
    side = next((math.isqrt(n) for n in (tokens - 1, tokens) if n > 0 and math.isqrt(n) ** 2 == n), 0)
    return patch_size, side * patch_size


def _fits(name: str, options: Mapping[str, Any], side: int, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a named network has exactly these tensors."""
    fixed = MODELS[name][1]
    if "num_classes" not in options or not fixed:  # without fixed options it is a generic network
        return False
    if fixed.get("depths", _depths(shapes)) != _depths(shapes):  # avoids tracing it
        return False
    given = tuple((key, value) for key, value in options.items() if key not in fixed)
    return _shapes_of(name, side or 224, given) == shapes


def _depths(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The number of blocks in each stage."""
    found = {match.groups() for key in shapes if (match := STAGE_BLOCK.match(key))}
    stages = [int(stage) for stage, _ in found]
    return tuple(stages.count(stage) for stage in sorted(set(stages)))


@functools.cache
def _shapes_of(name: str, side: int, options: tuple[tuple[str, Any], ...]) -> Mapping[str, tuple[int, ...]]:
    """The tensors' shapes of a named network, by published keys; empty if the network cannot be built."""
    try:
        model = create(name, **dict(options))
        like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    except InputError:
        return {}
    leaves = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flatten(like).items()}
    return {torch_key(path, network_of(model)): to_torch(path, leaf).shape for path, leaf in leaves.items()}
