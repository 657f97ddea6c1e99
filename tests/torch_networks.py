"""The published networks in PyTorch, by their own keys, as small as one likes: what weights in and out is tested on.

`python tests/torch_networks.py` (torch 2.13.0, CPU) records tests/models/golden/conv.npz: logits and an input gradient
of each network in float64. The tests that read it need no torch.
"""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402


def conv(inputs, outputs, kernel, stride=1, padding=None):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2 if padding is None else padding, bias=False)


def group(block, inputs, outputs, count, stride):
    blocks = [block(inputs, outputs, stride)]
    blocks += [block(outputs * block.expansion, outputs, 1) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = conv(outputs, 4 * outputs, 1), nn.BatchNorm2d(4 * outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != 4 * outputs:
            self.shortcut = nn.Sequential(conv(inputs, 4 * outputs, 1, stride), nn.BatchNorm2d(4 * outputs))

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class PreActV1(nn.Module):
    expansion = 1

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.changes_shape = stride != 1 or inputs != outputs
        if self.changes_shape:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride))

    def source(self, x, activated):
        return x

    def forward(self, x):
        a = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return y + (self.shortcut(self.source(x, a)) if self.changes_shape else x)


class PreActV2(PreActV1):
    def source(self, x, activated):
        return activated


class ResNet(nn.Module):
    def __init__(self, block, sizes, width, classes, last_bn=False):
        super().__init__()
        self.pre_activation = issubclass(block, PreActV1)
        self.conv1 = conv(3, width, 3)
        if not self.pre_activation:
            self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        self.stages = [f"layer{stage + 1}" for stage in range(len(sizes))]
        for stage, (name, size) in enumerate(zip(self.stages, sizes)):
            outputs = width * 2**stage
            self.add_module(name, group(block, inputs, outputs, size, 2 if stage else 1))
            inputs = outputs * block.expansion
        if last_bn:
            self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.conv1(x) if self.pre_activation else F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        x = F.relu(self.bn(x)) if hasattr(self, "bn") else x
        return self.linear(x.mean((2, 3)))


class Wide(nn.Module):
    expansion = 1

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x):
        a = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return y + (self.convShortcut(a) if self.convShortcut else x)


class WideGroup(nn.Module):
    def __init__(self, *arguments):
        super().__init__()
        self.layer = group(Wide, *arguments)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, blocks, width, classes, sub_block=False):
        super().__init__()
        self.conv1 = conv(3, 16, 3)
        self.block1 = WideGroup(16, 16 * width, blocks, 1)
        if sub_block:
            self.sub_block1 = WideGroup(16, 16 * width, blocks, 1)
        self.block2 = WideGroup(16 * width, 32 * width, blocks, 2)
        self.block3 = WideGroup(32 * width, 64 * width, blocks, 2)
        self.bn1, self.fc = nn.BatchNorm2d(64 * width), nn.Linear(64 * width, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def pad(x, stride):
    return F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))


class SwishWide(nn.Module):
    expansion = 1

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride = stride
        self.batchnorm_0, self.conv_0 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride, 0)
        self.batchnorm_1, self.conv_1 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.shortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x):
        a = F.silu(self.batchnorm_0(x))
        y = self.conv_1(F.silu(self.batchnorm_1(self.conv_0(pad(a, self.stride)))))
        return y + (self.shortcut(a) if self.shortcut else x)


class SwishWideGroup(nn.Module):
    def __init__(self, *arguments):
        super().__init__()
        self.block = group(SwishWide, *arguments)

    def forward(self, x):
        return self.block(x)


class SwishWideResNet(nn.Module):
    def __init__(self, blocks, width, classes):
        super().__init__()
        self.init_conv = conv(3, 16, 3)
        sizes = [16, 16 * width, 32 * width, 64 * width]
        strides = (1, 2, 2)
        self.layer = nn.Sequential(
            *(SwishWideGroup(sizes[i], sizes[i + 1], blocks, stride) for i, stride in enumerate(strides))
        )
        self.batchnorm, self.logits = nn.BatchNorm2d(sizes[-1]), nn.Linear(sizes[-1], classes)

    def forward(self, x):
        return self.logits(F.silu(self.batchnorm(self.layer(self.init_conv(x)))).mean((2, 3)))


class SwishPreAct(nn.Module):
    expansion = 1

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride = stride
        self.batchnorm_0, self.conv_2d_1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride, 0)
        self.batchnorm_1, self.conv_2d_2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.changes_shape = stride != 1 or inputs != outputs
        if self.changes_shape:
            self.shortcut = conv(inputs, outputs, 3, stride, 0)

    def forward(self, x):
        a = F.silu(self.batchnorm_0(x))
        y = self.conv_2d_2(F.silu(self.batchnorm_1(self.conv_2d_1(pad(a, self.stride)))))
        return y + (self.shortcut(pad(x, self.stride)) if self.changes_shape else x)


class SwishPreActResNet(nn.Module):
    def __init__(self, sizes, width, classes):
        super().__init__()
        self.conv_2d = conv(3, width, 3)
        inputs, self.stages = width, [f"layer_{stage}" for stage in range(len(sizes))]
        for stage, (name, size) in enumerate(zip(self.stages, sizes)):
            self.add_module(name, group(SwishPreAct, inputs, width * 2**stage, size, 2 if stage else 1))
            inputs = width * 2**stage
        self.batchnorm, self.logits = nn.BatchNorm2d(inputs), nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.conv_2d(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.logits(F.silu(self.batchnorm(x)).mean((2, 3)))


# name -> the network with these sizes: (blocks, width, classes), the blocks in four stages or three groups.
NETWORKS = {
    "resnet": lambda blocks, width, classes: ResNet(Basic, blocks, width, classes),
    "resnet_bottleneck": lambda blocks, width, classes: ResNet(Bottleneck, blocks, width, classes),
    "preact_v1": lambda blocks, width, classes: ResNet(PreActV1, blocks, width, classes),
    "preact_v2": lambda blocks, width, classes: ResNet(PreActV2, blocks, width, classes, last_bn=True),
    "wide_resnet": WideResNet,
    "dm_wide_resnet": SwishWideResNet,
    "dm_preact": SwishPreActResNet,
}


def gradient(net, images, weights):
    """Logits of NHWC images, and the gradient of their sum weighted by `weights`, NHWC."""
    x = torch.as_tensor(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    logits = net(x)
    (found,) = torch.autograd.grad((logits * torch.as_tensor(weights)).sum(), x)
    return logits.detach().numpy(), found.permute(0, 2, 3, 1).numpy()


def record():
    import numpy as np

    from piat_jax.interop import state_dict
    from tests.models.conv_golden import FILE, SMALL, WEIGHTS, sizes, small
    from tests.models.torch_reference import images

    found = {}
    for name in SMALL:
        model, variables = small(name)
        net = NETWORKS[name](*sizes(name)).double().eval()
        net.load_state_dict({key: torch.tensor(values) for key, values in state_dict(model, variables).items()})
        found[f"{name}/logits"], found[f"{name}/gradient"] = gradient(net, images(8, 8), WEIGHTS)
    np.savez_compressed(FILE, **{name: values.astype(np.float32) for name, values in found.items()})


if __name__ == "__main__":
    record()
