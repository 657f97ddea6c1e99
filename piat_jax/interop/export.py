"""Export weights: as safetensors with a config and a model card, or as a PyTorch state_dict."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded, write_file, write_json
from piat_jax.core.types import Variables
from piat_jax.interop.card import About, model_card, normalization_of
from piat_jax.interop.names import flatten, network_of, to_torch, torch_key
from piat_jax.interop.tensors import write_safetensors, write_torch
from piat_jax.interop.weights import CONFIG, SAFETENSORS
from piat_jax.models import LinenModel

CARD = "README.md"


def state_dict(model: LinenModel, variables: Variables) -> dict[str, np.ndarray]:
    """The weights with the keys and layout of the published PyTorch network, which can load them strictly.

    The running variances are ours, which are biased (`models/batch_norm.py`); the network's outputs are the same.
    """
    network, state = network_of(model), {}
    for path, leaf in flatten(variables).items():
        key = torch_key(path, network)
        state[key] = np.array(to_torch(path, np.asarray(leaf, np.float32)), order="C")
        if key.endswith("running_var"):
            # PyTorch requires it; with a fixed momentum nothing depends on its value.
            state[key.removesuffix("running_var") + "num_batches_tracked"] = np.zeros((), np.int64)
    return dict(sorted(state.items()))


def save_torch(path: Path, model: LinenModel, variables: Variables) -> None:
    """Write a state_dict for `torch.load`, without normalisation, which comes before the published networks.

    Raises:
      InputError: PyTorch is not installed.
    """
    write_torch(path, state_dict(model, variables))


def save_safetensors(
    folder: Path, model: LinenModel, variables: Variables, about: About, *, repository: str = ""
) -> None:
    """Write model.safetensors, config.json and a model card into a new folder, atomically.

    `load_weights` reads the folder back with its normalisation; PyTorch and timm read model.safetensors.

    Args:
      folder: a path that does not exist.
      model: the network.
      variables: its weights.
      about: the facts for the card.
      repository: `user/name` on the hub, if it will be uploaded.

    Raises:
      InputError: `folder` already exists.
    """
    folder = expanded(folder)
    if folder.exists():
        raise InputError(f"{folder} already exists; give a new folder")
    state = state_dict(model, variables)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_safetensors(partial / SAFETENSORS, state)
    write_json(partial / CONFIG, _config(model, about))
    parameters = sum(leaf.size for key, leaf in state.items() if not _is_statistic(key))
    text = model_card(model, about, parameters, repository=repository)
    write_file(partial / CARD, lambda file: file.write(text.encode()))
    partial.rename(folder)


def _is_statistic(key: str) -> bool:
    return key.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _config(model: LinenModel, about: About) -> dict[str, Any]:
    height, width, channels = about.image_shape
    mean, std = normalization_of(model, channels)
    return {
        "architecture": about.model,
        "num_classes": about.num_classes,
        # Written out as in timm's files, since timm assumes ImageNet's numbers otherwise.
        "pretrained_cfg": {
            "input_size": [channels, height, width],
            "num_classes": about.num_classes,
            "mean": list(mean),
            "std": list(std),
        },
        "piat_jax": {"model": about.model, "options": dict(about.options)},
    }
