"""Translate the keys of other code's files (torchvision's, the papers') into the keys that are read here."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Dialect(NamedTuple):
    """A key that identifies other code's files, and rules to translate keys; all rules apply to each key, in order."""

    sign: str  # a complete key
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


def _stage(name: str, *, blocks: bool) -> Callable[[re.Match[str]], str]:
    """The stage for a number of torchvision's `features`: 1, 3, 5 and 7 hold blocks; 2, 4 and 6 downsampling."""

    def rename(match: re.Match[str]) -> str:
        number = int(match[1])
        if number == 0 or bool(number % 2) != blocks:
            return match[0]
        return f"{name}.{number // 2}.{f'blocks.{match[2]}.' if blocks else 'downsample.'}"

    return rename


DIALECTS: dict[str, tuple[Dialect, ...]] = {
    "ConvNeXt": (
        Dialect(  # the authors'
            "downsample_layers.0.0.weight",
            (
                (r"^downsample_layers\.0\.", "stem."),
                (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
                (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
                (r"\.dwconv\.", ".conv_dw."),
                (r"\.pwconv(\d)\.", r".mlp.fc\1."),
                (r"^head\.", "head.fc."),
                (r"^norm\.", "head.norm."),
            ),
        ),
        Dialect(  # torchvision's
            "features.1.0.layer_scale",
            (
                (r"^features\.0\.", "stem."),
                (r"^features\.(\d+)\.(\d+)\.", _stage("stages", blocks=True)),
                (r"^features\.(\d+)\.", _stage("stages", blocks=False)),
                (r"\.block\.0\.", ".conv_dw."),
                (r"\.block\.2\.", ".norm."),
                (r"\.block\.3\.", ".mlp.fc1."),
                (r"\.block\.5\.", ".mlp.fc2."),
                (r"\.layer_scale$", ".gamma"),
                (r"^classifier\.0\.", "head.norm."),
                (r"^classifier\.2\.", "head.fc."),
            ),
        ),
    ),
    "Swin": (
        Dialect(  # the authors', and older timm's: downsampling is at the end of a stage there
            "layers.0.downsample.reduction.weight",
            (
                (r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
                (r"^head\.(?!fc\.)", "head.fc."),
            ),
        ),
        Dialect(  # torchvision's
            "features.1.0.attn.relative_position_bias_table",
            (
                (r"^features\.0\.0\.", "patch_embed.proj."),
                (r"^features\.0\.2\.", "patch_embed.norm."),
                (r"^features\.(\d+)\.(\d+)\.", _stage("layers", blocks=True)),
                (r"^features\.(\d+)\.", _stage("layers", blocks=False)),
                (r"\.mlp\.0\.", ".mlp.fc1."),
                (r"\.mlp\.3\.", ".mlp.fc2."),
                (r"^head\.", "head.fc."),
            ),
        ),
    ),
    "ViT": (
        Dialect(  # torchvision's
            "conv_proj.weight",
            (
                (r"^class_token$", "cls_token"),
                (r"^conv_proj\.", "patch_embed.proj."),
                (r"^encoder\.pos_embedding$", "pos_embed"),
                (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
                (r"\.ln_(\d)\.", r".norm\1."),
                (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
                (r"\.self_attention\.out_proj\.", ".attn.proj."),
                (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
                (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
                (r"^encoder\.ln\.", "norm."),
                (r"^heads\.head\.", "head."),
            ),
        ),
    ),
    "XCiT": (Dialect("pos_embeder.token_projection.weight", ((r"^pos_embeder\.", "pos_embed."),)),),  # the authors'
}
# Layers that the authors combine: the first of the equal parts is q, the next k, the last v.
SPLIT = {"XCiT": re.compile(r"(cls_attn_blocks\.\d+\.attn)\.qkv\.(weight|bias)")}
FLAT = re.compile(r".*\.gamma")
"""Keys of one number per channel, which files may store with additional axes of size 1."""


def translated(network: str, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Translate tensors to the keys that are read here; also returns the file's key of each.

    Args:
      network: class of the network.
      arrays: tensors by the file's keys, without prefixes.

    >>> arrays, keys = translated("ViT", {"conv_proj.weight": np.zeros(1), "class_token": np.zeros(1)})
    >>> sorted(arrays), keys["cls_token"]
    (['cls_token', 'patch_embed.proj.weight'], 'class_token')
    """
    rules = next((dialect.rules for dialect in DIALECTS.get(network, ()) if dialect.sign in arrays), ())
    found: dict[str, np.ndarray] = {}
    keys: dict[str, str] = {}
    for key, values in arrays.items():
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        parts = SPLIT[network].fullmatch(name) if network in SPLIT else None
        if parts and len(values) % 3 == 0:
            found |= {f"{parts[1]}.{part}.{parts[2]}": v for part, v in zip("qkv", np.split(values, 3))}
            keys |= {f"{parts[1]}.{part}.{parts[2]}": key for part in "qkv"}
        else:
            found[name] = values.ravel() if FLAT.fullmatch(name) and values.size == values.shape[0] else values
            keys[name] = key
    return found, keys
