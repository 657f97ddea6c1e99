"""Image classifiers as pairs of pure functions; the only package that imports Flax.

`create(name, num_classes=...)` makes a model from `MODELS`, to which the decorator `model` adds. Register your own
module with `model`, or use it without a name through `LinenModel(module)`.
"""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_at_least, check_choice, check_count, check_range, did_you_mean
from piat_jax.models.batch_norm import MOMENTUM
from piat_jax.models.layers import LinenModel, check_normalization
from piat_jax.models.registry import MODELS, model
from piat_jax.models.stochastic_depth import check_drop_path

# isort: off
# This order is the order of the listings.
from piat_jax.models.resnet import ImageNetResNet, ResNet
from piat_jax.models.wide_resnet import WideResNet
from piat_jax.models.deepmind import SwishPreActResNet, SwishWideResNet
from piat_jax.models.mlp import MLP
from piat_jax.models.vit import ViT
from piat_jax.models.convit import ConViT
from piat_jax.models.convnext import ConvNeXt
from piat_jax.models.swin import Swin
from piat_jax.models.xcit import XCiT
# isort: on

__all__ = [
    "DTYPES",
    "MLP",
    "MODELS",
    "ConViT",
    "ConvNeXt",
    "ImageNetResNet",
    "LinenModel",
    "ResNet",
    "Swin",
    "SwishPreActResNet",
    "SwishWideResNet",
    "ViT",
    "WideResNet",
    "XCiT",
    "create",
    "model",
    "options_of",
]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Attributes that only a model's name decides.
OF_NAMES = ("pre_activation", "raw_shortcut", "bottleneck")
WITH_BATCH_NORM = (ResNet, ImageNetResNet, WideResNet, SwishPreActResNet, SwishWideResNet, XCiT)
SMALL_RESNET = {"stage_sizes": (1, 1, 1), "width": 16, "stem_stride": 2}


def __getattr__(name: str) -> Any:
    if name != "loop_safe_conv_general_dilated":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    text = f"{__name__}.{name} is not needed any more: loops make every convolution safe; the next release removes it"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    return functools.partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def create(
    name: str,
    *,
    num_classes: int,
    dtype: str = "float32",
    bn_groups: int = 1,
    bn_momentum: float = MOMENTUM,
    **options: Any,
) -> LinenModel:
    """The model with this name.

    Args:
      name: one of `MODELS`.
      num_classes: K, at least 2.
      dtype: of the activations, "float32" or "bfloat16".
      bn_groups: groups of the batch, each with its own BatchNorm statistics in training; 1 is the full batch.
      bn_momentum: share of a batch in BatchNorm's running statistics at each update, in (0, 1]: PyTorch's momentum.
      **options: attributes of the module: mean, std; width, stage_sizes, stem_stride for small_resnet;
        blocks_per_group, widen_factor for wide_resnet and dm_wide_resnet; hidden for mlp; remat for all except mlp;
        patch_size for Vision Transformers, Swin and XCiT, stem_stride for ConvNeXt, window for Swin, drop_path
        (stochastic depth) for all of these; for vit, convit, convnext, swin, xcit and imagenet_resnet also the
        attributes that other names decide (width, depth, heads, ...; see their classes).

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
    check_range("bn_momentum", bn_momentum, 0, 1, open_low=True)
    (module, fixed), known = MODELS[name], options_of(name)
    if bn_groups > 1 and module not in WITH_BATCH_NORM:
        raise InputError(f"bn_groups={bn_groups}: model {name!r} has no BatchNorm; leave it at 1")
    for option in options:
        if option not in known:
            raise InputError(f"model {name!r} takes no option {option!r}{did_you_mean(option, known)}")
    for option in options.keys() - {"mean", "std"}:
        _check_size(option, options[option])
    check_drop_path(options.get("drop_path", 0.0))
    check_normalization(options.get("mean", ()), options.get("std", ()))
    defaults = SMALL_RESNET if name == "small_resnet" else {}
    built = module(num_classes=num_classes, dtype=DTYPES[dtype], **{**defaults, **options, **fixed})
    return LinenModel(built, bn_groups, bn_momentum)


def options_of(name: str) -> dict[str, Any]:
    """The options that `create` takes for a network, with their defaults, without the attributes that its name decides.

    Args:
      name: one of `MODELS`.

    Raises:
      InputError: an unknown name.

    >>> options_of("mlp"), options_of("small_resnet")["width"], "depths" in options_of("convnext_tiny")
    ({'hidden': (100,), 'mean': (), 'std': ()}, 16, False)
    """
    check_choice("model", name, MODELS)
    module, fixed = MODELS[name]
    own = SMALL_RESNET if name == "small_resnet" else {}
    decided = {"parent", "name", "num_classes", "dtype", *OF_NAMES, *fixed}
    fields = module.__dataclass_fields__  # type: ignore[attr-defined]
    return {option: own.get(option, field.default) for option, field in fields.items() if option not in decided}


def _check_size(option: str, value: object) -> None:
    """Raise InputError if a width, depth, stride or similar option is below 1."""
    if option == "stage_sizes" and not value:
        raise InputError("stage_sizes is empty; give the blocks of each stage, such as (1, 1, 1)")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and not isinstance(number, bool):
            check_at_least(option, number, 0 if option in ("local_depth", "stem_width", "drop_path") else 1)
