"""The networks' topologies in PyTorch, after the published files; run once to record what test_parity.py expects.

`python tests/models/torch_reference.py` (torch 2.13.0, CPU) prints the logits. The tests need no torch: they use
`fill` and `images` only, a closed formula for every weight in Flax's layout.
"""

import numpy as np


def fill(path, shape):
    """Weights of the leaf called `path`; small variances make BatchNorm's epsilon visible in the logits."""
    wave = np.sin(np.arange(np.prod(shape)) ** 1.5 + sum(map(ord, path))).reshape(shape)
    return {
        "kernel": wave * np.sqrt(2 / np.prod(shape[:-1])),
        "bias": 0.2 * wave,
        "scale": 0.03 * (1 + 0.3 * wave),
        "mean": 0.1 * wave,
        "var": 1e-3 * (1.5 + wave),
    }[path.rsplit("/")[-1]]


def images(height=9, width=6):
    return (0.5 + 0.5 * np.sin(np.arange(2 * height * width * 3) ** 1.5)).reshape(2, height, width, 3)


def filled(model, x):
    """The model's variables with every leaf replaced by the formula's."""
    import jax

    def leaf(path, shape):
        values = fill(jax.tree_util.keystr(path, simple=True, separator="/"), shape.shape)
        return jax.numpy.asarray(values, shape.dtype)

    params, state = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map_with_path(leaf, params), {
        name: jax.tree.map_with_path(leaf, tree) for name, tree in state.items()
    }


def record():
    import torch
    import torch.nn.functional as F

    def conv(x, name, out, kernel, stride=1):
        weight = fill(f"{name}/conv/kernel", (kernel, kernel, x.shape[1], out))
        return F.conv2d(x, torch.tensor(weight.transpose(3, 2, 0, 1)), stride=stride, padding=kernel // 2)

    def bn(x, name):
        mean, var, scale, bias = (
            torch.tensor(fill(f"{name}/{p}", x.shape[1:2])) for p in ("mean", "var", "scale", "bias")
        )
        return F.batch_norm(x, mean, var, scale, bias, training=False, eps=1e-5)

    def linear(x, name):
        weight, bias = fill(f"{name}/dense/kernel", (x.shape[1], 3)), fill(f"{name}/dense/bias", (3,))
        return F.linear(x, torch.tensor(weight.T), torch.tensor(bias))

    def basic(x, name, out, stride):
        y = F.relu(bn(conv(x, f"{name}/conv1", out, 3, stride), f"{name}/bn1"))
        y = bn(conv(y, f"{name}/conv2", out, 3), f"{name}/bn2")
        if stride != 1 or x.shape[1] != out:
            x = bn(conv(x, f"{name}/shortcut_conv", out, 1, stride), f"{name}/shortcut_bn")
        return F.relu(y + x)

    def pre_activated(x, name, out, stride):  # robust_overfitting's PreActBlock and TRADES' wide BasicBlock
        a = F.relu(bn(x, f"{name}/bn1"))
        shortcut = conv(a, f"{name}/shortcut_conv", out, 1, stride) if stride != 1 or x.shape[1] != out else x
        y = conv(a, f"{name}/conv1", out, 3, stride)
        return conv(F.relu(bn(y, f"{name}/bn2")), f"{name}/conv2", out, 3) + shortcut

    x = torch.tensor(images().transpose(0, 3, 1, 2))

    y = F.relu(bn(conv(x, "conv1", 4, 3, 2), "bn1"))
    y = basic(basic(y, "layer1_0", 4, 1), "layer1_1", 4, 1)
    y = basic(y, "layer2_0", 8, 2)
    print("resnet", linear(y.mean((2, 3)), "linear").tolist())

    y = conv(x, "conv1", 4, 3)
    y = pre_activated(pre_activated(y, "layer1_0", 4, 1), "layer1_1", 4, 1)
    y = pre_activated(y, "layer2_0", 8, 2)
    print("preact_resnet", linear(F.relu(bn(y, "bn")).mean((2, 3)), "linear").tolist())

    y = conv(x, "conv1", 16, 3)
    for group, out in enumerate((16, 32, 64), 1):
        for index in range(2):
            y = pre_activated(y, f"block{group}_{index}", out, 2 if group > 1 and index == 0 else 1)
    print("wide_resnet", linear(F.relu(bn(y, "bn1")).mean((2, 3)), "fc").tolist())


if __name__ == "__main__":
    record()
