"""Image classifiers as pairs of pure functions; the only package that imports Flax.

`create(name, num_classes=...)` makes one of `MODELS`. A module of your own joins through `LinenModel(module)`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_at_least, check_choice, check_count, did_you_mean
from piat_jax.models.conv import loop_safe_conv_general_dilated
from piat_jax.models.convit import ConViT
from piat_jax.models.deepmind import SwishPreActResNet, SwishWideResNet
from piat_jax.models.layers import LinenModel, check_normalization
from piat_jax.models.mlp import MLP
from piat_jax.models.resnet import ResNet
from piat_jax.models.vit import ViT
from piat_jax.models.wide_resnet import WideResNet

__all__ = [
    "DTYPES",
    "MLP",
    "MODELS",
    "ConViT",
    "LinenModel",
    "ResNet",
    "SwishPreActResNet",
    "SwishWideResNet",
    "ViT",
    "WideResNet",
    "create",
    "loop_safe_conv_general_dilated",
]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# name -> (module class, its fixed options). Options not fixed here may be given to `create`.
MODELS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "resnet18": (ResNet, {"stage_sizes": (2, 2, 2, 2)}),
    # What the code of the RPAT paper calls ResNet-18.
    "resnet26": (ResNet, {"stage_sizes": (2, 2, 2, 2), "bottleneck": True}),
    "resnet50": (ResNet, {"stage_sizes": (3, 4, 6, 3), "bottleneck": True}),
    # Two networks go by this name; the first form's weights would also fit the second, less its last BN.
    "preact_resnet18": (ResNet, {"stage_sizes": (2, 2, 2, 2), "pre_activation": True}),
    "preact_resnet18_v1": (ResNet, {"stage_sizes": (2, 2, 2, 2), "pre_activation": True, "raw_shortcut": True}),
    "small_resnet": (ResNet, {}),
    "wrn_28_10": (WideResNet, {"blocks_per_group": 4, "widen_factor": 10}),
    # The paper's WRN-32-10 counts its depth as 6n + 2: five blocks per group, the same network as WRN-34-10.
    "wrn_32_10": (WideResNet, {"blocks_per_group": 5, "widen_factor": 10}),
    "wrn_34_10": (WideResNet, {"blocks_per_group": 5, "widen_factor": 10}),
    "wrn_34_20": (WideResNet, {"blocks_per_group": 5, "widen_factor": 20}),
    "wrn_70_16": (WideResNet, {"blocks_per_group": 11, "widen_factor": 16}),
    "wide_resnet": (WideResNet, {}),
    # DeepMind's, with Swish: they normalise by CIFAR-10's mean and std unless told otherwise.
    "dm_preact_resnet18": (SwishPreActResNet, {"stage_sizes": (2, 2, 2, 2)}),
    "dm_wrn_28_10": (SwishWideResNet, {"blocks_per_group": 4, "widen_factor": 10}),
    "dm_wrn_34_10": (SwishWideResNet, {"blocks_per_group": 5, "widen_factor": 10}),
    "dm_wrn_70_16": (SwishWideResNet, {"blocks_per_group": 11, "widen_factor": 16}),
    "dm_wide_resnet": (SwishWideResNet, {}),
    "mlp": (MLP, {}),
    "vit_tiny": (ViT, {"width": 192, "depth": 12, "heads": 3}),
    "vit_small": (ViT, {"width": 384, "depth": 12, "heads": 6}),
    "vit_base": (ViT, {"width": 768, "depth": 12, "heads": 12}),
    # DeiT differs from ViT in how it was trained.
    "deit_tiny": (ViT, {"width": 192, "depth": 12, "heads": 3}),
    "deit_small": (ViT, {"width": 384, "depth": 12, "heads": 6}),
    "vit": (ViT, {}),
    "convit_tiny": (ConViT, {"width": 192, "depth": 12, "local_depth": 10, "heads": 4}),
    "convit_small": (ConViT, {"width": 432, "depth": 12, "local_depth": 10, "heads": 9}),
    "convit_base": (ConViT, {"width": 768, "depth": 12, "local_depth": 10, "heads": 16}),
    "convit": (ConViT, {}),
}
# What only a name decides.
OF_NAMES = ("pre_activation", "raw_shortcut", "bottleneck")
WITH_BATCH_NORM = (ResNet, WideResNet, SwishPreActResNet, SwishWideResNet)
SMALL_RESNET = {"stage_sizes": (1, 1, 1), "width": 16, "stem_stride": 2}


def create(name: str, *, num_classes: int, dtype: str = "float32", bn_groups: int = 1, **options: Any) -> LinenModel:
    """The model called `name`.

    Args:
      name: one of `MODELS`.
      num_classes: K, at least 2.
      dtype: of the activations, "float32" or "bfloat16".
      bn_groups: groups of the batch, each with BatchNorm statistics of its own in training; 1 is the whole batch.
      **options: attributes of the module: mean, std; width, stage_sizes, stem_stride for small_resnet;
        blocks_per_group, widen_factor for wide_resnet and dm_wide_resnet; hidden for mlp; remat for all but mlp;
        patch_size for Vision Transformers, and width, depth, heads for vit and convit, local_depth for the latter.

    Raises:
      InputError: an unknown name or option, or a value out of range.

    >>> create("resnet19", num_classes=10)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: model='resnet19' is unknown; did you mean 'resnet18'?
    """
    check_choice("model", name, MODELS)
    check_choice("dtype", dtype, DTYPES)
    check_count("num_classes", num_classes, 2)
    check_count("bn_groups", bn_groups, 1)
    module, fixed = MODELS[name]
    if bn_groups > 1 and module not in WITH_BATCH_NORM:
        raise InputError(f"bn_groups={bn_groups}: model {name!r} has no BatchNorm; leave it at 1")
    defaults = SMALL_RESNET if name == "small_resnet" else {}
    known = set(module.__dataclass_fields__) - {"parent", "name", "num_classes", "dtype", *OF_NAMES, *fixed}  # type: ignore[attr-defined]
    for option in options:
        if option not in known:
            raise InputError(f"model {name!r} takes no option {option!r}{did_you_mean(option, known)}")
    for option in options.keys() - {"mean", "std"}:
        _check_size(option, options[option])
    check_normalization(options.get("mean", ()), options.get("std", ()))
    built = module(num_classes=num_classes, dtype=DTYPES[dtype], **{**defaults, **options, **fixed})
    return LinenModel(built, bn_groups)


def _check_size(option: str, value: object) -> None:
    """Raise InputError for a width, depth, stride or the like that is below 1."""
    if option == "stage_sizes" and not value:
        raise InputError("stage_sizes is empty; give the blocks of each stage, such as (1, 1, 1)")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and not isinstance(number, bool):
            check_at_least(option, number, 0 if option == "local_depth" else 1)
