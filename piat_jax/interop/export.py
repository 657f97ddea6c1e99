"""Weights out: safetensors with a config and a model card, and PyTorch's state_dict."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded, write_file, write_json
from piat_jax.core.types import Variables
from piat_jax.interop.names import flatten, network_of, to_torch, torch_key
from piat_jax.interop.tensors import write_safetensors, write_torch
from piat_jax.interop.weights import CONFIG, SAFETENSORS
from piat_jax.models import LinenModel

CARD = "README.md"
SIZES = ("tiny", "small", "base", "large")
# How the published code makes the same network.
ORIGINALS = {
    "resnet18": "robustbench.model_zoo.architectures.resnet.ResNet18()",
    "resnet50": "robustbench.model_zoo.architectures.resnet.ResNet50()",
    "preact_resnet18_v1": "robustbench.model_zoo.architectures.resnet.PreActResNet(PreActBlock, [2, 2, 2, 2])",
    "preact_resnet18": "robustbench.model_zoo.architectures.resnet.PreActResNet("
    "PreActBlockV2, [2, 2, 2, 2], bn_before_fc=True)",
    "dm_preact_resnet18": "robustbench.model_zoo.architectures.dm_wide_resnet.DMPreActResNet(activation_fn=Swish)",
    **{
        f"wrn_{depth}_{width}": "robustbench.model_zoo.architectures.wide_resnet.WideResNet("
        # The paper's WRN-32-10 is the WRN-34-10 of others.
        f"depth={34 if depth == 32 else depth}, widen_factor={width})"
        for depth, width in ((28, 10), (32, 10), (34, 10), (34, 20), (70, 16))
    },
    **{
        f"dm_wrn_{depth}_{width}": "robustbench.model_zoo.architectures.dm_wide_resnet.DMWideResNet("
        f"depth={depth}, width={width}, activation_fn=Swish)"
        for depth, width in ((28, 10), (34, 10), (70, 16))
    },
    "resnet18_imagenet": "torchvision.models.resnet18()",
    "resnet50_imagenet": "torchvision.models.resnet50()",
    "wrn_50_2": "torchvision.models.wide_resnet50_2()",
    **{f"convnext_{size}": f'timm.create_model("convnext_{size}")' for size in SIZES},
    **{f"swin_{size}": f'timm.create_model("swin_{size}_patch4_window7_224")' for size in SIZES},
    "xcit_s12": 'timm.create_model("xcit_small_12_p16_224")',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What an export says of its network, beside the weights; what is empty is left out."""

    model: str  # as `models.create` calls it
    num_classes: int
    image_shape: tuple[int, int, int]  # height, width, channels
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of `models.create`, less mean and std
    dataset: str = ""
    method: str = ""
    threat: str = ""  # what it was trained against, such as "linf, eps 8/255"
    checkpoint: str = ""
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by attack, fractions
    num_examples: int = 0  # that the accuracies are of
    source: str = ""


def state_dict(model: LinenModel, variables: Variables) -> dict[str, np.ndarray]:
    """The weights by the keys and in the layout of the published PyTorch network, which loads them strictly.

    The running variances are ours, the biased ones (`models/batch_norm.py`): what the network computes is the same.
    """
    network, state = network_of(model), {}
    for path, leaf in flatten(variables).items():
        key = torch_key(path, network)
        state[key] = np.array(to_torch(path, np.asarray(leaf, np.float32)), order="C")
        if key.endswith("running_var"):
            # PyTorch asks for it; with a fixed momentum nothing depends on its value.
            state[key.removesuffix("running_var") + "num_batches_tracked"] = np.zeros((), np.int64)
    return dict(sorted(state.items()))


def save_torch(path: Path, model: LinenModel, variables: Variables) -> None:
    """Write a state_dict for `torch.load`. It holds no normalisation: that stands before the published networks.

    Raises:
      InputError: PyTorch is not installed.
    """
    write_torch(path, state_dict(model, variables))


def save_safetensors(folder: Path, model: LinenModel, variables: Variables, about: About) -> None:
    """Write model.safetensors, config.json and a model card into a new folder, whole or not at all.

    `load_weights` reads it back with its normalisation; PyTorch and timm read model.safetensors.

    Raises:
      InputError: there is something at `folder` already.
    """
    folder = expanded(folder)
    if folder.exists():
        raise InputError(f"{folder} exists; give a new folder")
    state = state_dict(model, variables)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_safetensors(partial / SAFETENSORS, state)
    write_json(partial / CONFIG, _config(model, about))
    text = model_card(model, about, sum(leaf.size for key, leaf in state.items() if not _is_statistic(key)))
    write_file(partial / CARD, lambda file: file.write(text.encode()))
    partial.rename(folder)


def _is_statistic(key: str) -> bool:
    return key.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _config(model: LinenModel, about: About) -> dict[str, Any]:
    height, width, channels = about.image_shape
    mean, std = _normalization(model, channels)
    return {
        "architecture": about.model,
        "num_classes": about.num_classes,
        # As in timm's files, which take ImageNet's numbers where there are none.
        "pretrained_cfg": {
            "input_size": [channels, height, width],
            "num_classes": about.num_classes,
            "mean": list(mean),
            "std": list(std),
        },
        "piat_jax": {"model": about.model, "options": dict(about.options)},
    }


def _normalization(model: LinenModel, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = getattr(model.module, "mean", ()), getattr(model.module, "std", ())
    return (mean, std) if mean else ((0.0,) * channels, (1.0,) * channels)


def model_card(model: LinenModel, about: About, parameters: int) -> str:
    """The README of an export."""
    height, width, channels = about.image_shape
    mean, std = _normalization(model, channels)
    plain = set(mean) == {0.0} and set(std) == {1.0}
    facts = {
        "Network": f"{about.model}, {parameters:,} parameters",
        "Input": f"{height} x {width} pixels, {channels} channel(s), in [0, 1]",
        "Normalisation": "none" if plain else f"(x - mean) / std, mean {list(mean)}, std {list(std)}",
        "Classes": about.num_classes,
        "Data": about.dataset,
        "Training": about.method,
        "Trained against": about.threat,
        "Checkpoint": about.checkpoint,
        "Made from": about.source,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value)
    accuracy = ""
    if about.accuracy:
        rows = "\n".join(f"| {attack} | {100 * value:.2f} % |" for attack, value in about.accuracy.items())
        accuracy = (
            f"\n## Accuracy\n\nOn {about.num_examples:,} test images.\n\n| attack | accuracy |\n|---|---|\n{rows}\n"
        )
    original = ORIGINALS.get(about.model, "")
    classes = 10 if original.startswith("robustbench.") else 1000  # that it has unless told otherwise
    comment = f"  # for instance {original}" if original and about.num_classes == classes else ""
    before = "images" if plain else "(images - mean) / std"
    if network_of(model).startswith("Swish"):  # the published class normalises by itself
        before, comment = "images", comment.replace("activation_fn", f"mean={mean}, std={std}, activation_fn")
    options = "".join(f", {name}={value!r}" for name, value in about.options.items())
    return f"""---
library_name: piat_jax
tags: [image-classification, adversarial-robustness, jax, pytorch, safetensors]
---

# {about.model}{f" on {about.dataset}" if about.dataset else ""}

| | |
|---|---|
{table}
{accuracy}
## Use

With piat_jax, in which the normalisation is part of the network:

    from piat_jax.core.forward import make_logits_fn
    from piat_jax.interop import load_weights
    from piat_jax.models import create

    model = create({about.model!r}, num_classes={about.num_classes}{options})
    loaded = load_weights(folder, model, {about.image_shape})
    logits_fn = make_logits_fn(loaded.model, loaded.variables)  # images [B, H, W, C] in [0, 1] -> logits

With PyTorch (RobustBench, timm), in the network of the same name:

    from safetensors.torch import load_file

    net.load_state_dict(load_file("{SAFETENSORS}")){comment}
    logits = net.eval()({before})  # images [B, C, H, W] in [0, 1]
"""
