"""Our paths and PyTorch's keys for the same weights: one table, read in both directions."""

import re
from collections.abc import Mapping

import jax
import numpy as np

from piat_jax.core.types import Array, Model, Variables

Rules = tuple[tuple[str, str], ...]
# Class of the network -> (part of our path, part of the published key). The first that matches a full part counts.
RULES: dict[str, Rules] = {
    "ResNet": ((r"layer(\d+)_(\d+)", r"layer\1.\2"), ("shortcut_conv", "shortcut.0"), ("shortcut_bn", "shortcut.1")),
    "ImageNetResNet": (
        (r"layer(\d+)_(\d+)", r"layer\1.\2"),
        ("shortcut_conv", "downsample.0"),
        ("shortcut_bn", "downsample.1"),
    ),
    "ConvNeXt": ((r"(stem|stages|downsample|blocks)_(\d+)", r"\1.\2"),),
    "ViT": ((r"(stem|blocks)_(\d+)", r"\1.\2"),),
    "XCiT": (
        (r"proj_(\d+)_(\d+)", r"proj.\1.\2"),
        (r"(blocks|cls_attn_blocks)_(\d+)", r"\1.\2"),
    ),
    "Swin": ((r"(layers|blocks)_(\d+)", r"\1.\2"),),
    "WideResNet": ((r"block(\d+)_(\d+)", r"block\1.layer.\2"), ("shortcut_conv", "convShortcut")),
    "SwishWideResNet": ((r"layer(\d+)_(\d+)", r"layer.\1.block.\2"),),
    "SwishPreActResNet": (
        (r"layer(\d+)_(\d+)", r"layer_\1.\2"),
        ("conv_0", "conv_2d_1"),
        ("conv_1", "conv_2d_2"),
    ),
}
# Vision Transformers, whose parts have timm's names.
OTHERS: Rules = ((r"blocks_(\d+)", r"blocks.\1"),)
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
HEADS = ("linear", "fc", "logits", "head")
"""The networks' names of their last layer."""


def torch_key(path: str, network: str) -> str:
    """PyTorch's key for the leaf at `path` in a network of this class.

    >>> torch_key("params/layer2_0/shortcut_conv/conv/kernel", "ResNet")
    'layer2.0.shortcut.0.weight'
    >>> torch_key("batch_stats/block1_3/bn2/var", "WideResNet")
    'block1.layer.3.bn2.running_var'
    >>> torch_key("params/blocks_11/attn/qkv/kernel", "ViT")
    'blocks.11.attn.qkv.weight'
    """
    _, *modules, leaf = path.split("/")
    if len(modules) > 1 and modules[-1] in ("conv", "dense"):  # the layers inside our Conv and Linear
        modules.pop()
    return ".".join([*(_renamed(module, RULES.get(network, OTHERS)) for module in modules), LEAVES.get(leaf, leaf)])


def _renamed(module: str, rules: Rules) -> str:
    for ours, theirs in rules:
        if match := re.fullmatch(ours, module):
            return match.expand(theirs)
    return module


def is_head(path: str) -> bool:
    """Whether the leaf at `path` belongs to the last layer.

    >>> is_head("params/linear/dense/kernel"), is_head("params/head/fc/bias"), is_head("params/head/norm/scale")
    (True, True, False)
    """
    _, *modules, _ = path.split("/")
    if len(modules) > 1 and modules[-1] == "dense":
        modules.pop()
    return bool(modules) and modules[0] in HEADS and modules[-1] in HEADS


def to_torch(path: str, values: np.ndarray) -> np.ndarray:
    """A leaf in PyTorch's layout: kernels as `[out, in, height, width]` or `[out, in]`, everything else unchanged.

    A layer on flattened images (`mlp`) keeps our order of pixels, with channels last.
    """
    return values.transpose(3, 2, 0, 1) if _is_conv(path, values) else values.T if _is_dense(path, values) else values


def from_torch(path: str, values: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    return values.transpose(2, 3, 1, 0) if _is_conv(path, values) else values.T if _is_dense(path, values) else values


def _is_conv(path: str, values: np.ndarray) -> bool:
    return path.endswith("/kernel") and values.ndim == 4


def _is_dense(path: str, values: np.ndarray) -> bool:
    return path.endswith("/kernel") and values.ndim == 2


def network_of(model: Model) -> str:
    """The name of the network's class."""
    return type(getattr(model, "module", model)).__name__


def flatten(variables: Variables) -> dict[str, Array]:
    """All leaves by path: "params/..." and, for BatchNorm, "batch_stats/..."."""
    tree = {"params": variables.params, **variables.model_state}
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def unflatten(leaves: Mapping[str, np.ndarray], like: Variables) -> Variables:
    """The tree of `like` with these leaves, as arrays of the same types."""
    treedef = jax.tree.structure({"params": like.params, **like.model_state})
    ordered = [jax.numpy.asarray(np.asarray(leaves[path], leaf.dtype)) for path, leaf in flatten(like).items()]
    tree = jax.tree.unflatten(treedef, ordered)
    return Variables(tree.pop("params"), tree)
