"""The library's post-activation ResNet and WideResNet as PyTorch modules, and the way of Flax variables into them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from piat_jax.core.types import Variables

# Flax's name of a leaf -> PyTorch's.
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """`relu(bn(conv(relu(bn(conv x)))) + shortcut)`; the shortcut is conv1x1 + BN where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.changes_shape = stride != 1 or inputs != outputs
        if self.changes_shape:
            self.shortcut_conv, self.shortcut_bn = _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.changes_shape:
            x = self.shortcut_bn(self.shortcut_conv(x))
        return F.relu(y.add_(x), inplace=True)


class ResNet(nn.Module):
    """3x3 stem, stages of blocks (every one after the first halves the image and doubles the width), pool, linear.

    Args:
      num_classes: K.
      channels: of the images.
      stage_sizes: blocks per stage.
      width: channels of the first stage.
      stem_stride: of the first convolution.
      mean, std: input normalisation per channel, inside the model; () for none.
      channels_last: whether activations are in this memory format.

    Source: He et al. (2016), arXiv:1512.03385; names and shapes are those of `piat_jax.models.ResNet`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 3,
        stage_sizes: tuple[int, ...] = (2, 2, 2, 2),
        width: int = 64,
        stem_stride: int = 1,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        channels_last: bool = False,
    ):
        super().__init__()
        # Not persistent: they are attributes of the Flax module, not variables.
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)
        self.conv1, self.bn1 = _conv(channels, width, 3, stem_stride), nn.BatchNorm2d(width)
        self.blocks = []
        inputs = width
        for stage, size in enumerate(stage_sizes):
            for index in range(size):
                outputs, stride = width * 2**stage, 2 if stage > 0 and index == 0 else 1
                self.blocks.append(f"layer{stage + 1}_{index}")
                self.add_module(self.blocks[-1], BasicBlock(inputs, outputs, stride))
                inputs = outputs
        self.linear = nn.Linear(inputs, num_classes)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[B, K]` of images `[B, C, H, W]` in [0, 1]."""
        x = (images - self.mean) / self.std if len(self.mean) else images
        x = x.contiguous(memory_format=self.memory_format)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    """`conv(relu(bn(conv(a)))) + shortcut`, `a = relu(bn x)`; shortcut: x itself, or conv1x1 of `a` on a new shape."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs, 3)
        self.changes_shape = inputs != outputs
        if self.changes_shape:
            self.shortcut_conv = _conv(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        a = F.relu(self.bn1(x), inplace=True)
        y = self.conv2(F.relu(self.bn2(self.conv1(a)), inplace=True))
        return y.add_(self.shortcut_conv(a) if self.changes_shape else x)


class WideResNet(nn.Module):
    """3x3 stem to 16 channels, three groups of blocks at 16W, 32W and 64W (strides 1, 2, 2), BN, ReLU, pool, linear.

    Args:
      num_classes: K.
      channels: of the images.
      blocks_per_group: 5 in WRN-32-10.
      widen_factor: W.
      channels_last: whether activations are in this memory format.

    Source: Zagoruyko & Komodakis (2016), arXiv:1605.07146; names and shapes are those of `piat_jax.models.WideResNet`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 3,
        blocks_per_group: int = 5,
        widen_factor: int = 10,
        channels_last: bool = False,
    ):
        super().__init__()
        self.conv1 = _conv(channels, 16, 3)
        self.blocks = []
        inputs = 16
        for group in range(3):
            for index in range(blocks_per_group):
                outputs, stride = 16 * 2**group * widen_factor, 2 if group > 0 and index == 0 else 1
                self.blocks.append(f"block{group + 1}_{index}")
                self.add_module(self.blocks[-1], WideBlock(inputs, outputs, stride))
                inputs = outputs
        self.bn1, self.fc = nn.BatchNorm2d(inputs), nn.Linear(inputs, num_classes)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[B, K]` of images `[B, C, H, W]` in [0, 1]."""
        x = self.conv1(images.contiguous(memory_format=self.memory_format))
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return self.fc(F.relu(self.bn1(x), inplace=True).mean((2, 3)))


def load(module: nn.Module, variables: Variables) -> nn.Module:
    """The module with the weights and running statistics of a Flax model, in eval mode and frozen, as attacks want it.

    Args:
      module: a `ResNet` or `WideResNet` of the same attributes as the Flax one.
      variables: as a `LinenModel` of the Flax one has them.

    Raises:
      RuntimeError: entries that are missing, left over or of another shape, by name.
    """
    leaves = [*_leaves(variables.params), *_leaves(variables.model_state["batch_stats"])]
    # strict: both what is missing and what is left over raise.
    module.load_state_dict({name: torch.tensor(value) for name, value in leaves}, strict=True)
    return module.eval().requires_grad_(False)


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """PyTorch's name and layout of every array of a Flax tree."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            # Flax keeps a layer's arrays one level deeper, in "conv" or "dense".
            yield from _leaves(value, path if name in ("conv", "dense") else (*path, name))
        else:
            array = np.asarray(value)
            # HWIO to OIHW, and [in, out] to [out, in].
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            yield ".".join([*path, LEAVES[name]]), array
