"""What torchvision and timm make of our ImageNet networks' weights; run once to record what test_imagenet.py expects.

`python -m tests.models.torch_reference_imagenet` (timm 1.0.31, torchvision 0.28.0, torch 2.13.0, CPU) compares, and
writes golden/imagenet.npz. The tests need none of these: every weight is drawn by its path.
"""

from pathlib import Path

import numpy as np

from tests.models.torch_reference_vit import cotangent, define_missing_operators, draw, images

FILE = Path(__file__).parent / "golden" / "imagenet.npz"
CLASSES = 5
CONVNEXT = {"depths": (1, 1, 1, 1), "widths": (8, 12, 16, 24)}
VIT = {"width": 16, "depth": 1, "heads": 4, "patch_size": 8}
SWIN = {"width": 8, "depths": (2, 1, 1), "heads": (2, 4, 4), "patch_size": 2, "window": 3}
XCIT = {"width": 16, "depth": 1, "class_depth": 1, "heads": 2}
# Name -> network, options, pixels along a side.
CASES = {
    "resnet": ("resnet18_imagenet", {"width": 4}, 32),
    "wide_resnet": ("imagenet_resnet", {"width": 4, "stage_sizes": (1, 2, 1, 1), "widen": 2}, 64),
    "convnext": ("convnext", CONVNEXT, 32),
    "convnext_convstem": ("convnext", {**CONVNEXT, "stem": (4, 6, 8)}, 32),
    "vit_convstem": ("vit", {**VIT, "stem_width": 4}, 32),
    "swin": ("swin", SWIN, 20),  # grids of 10 and 5, which zeros fill up, and of 3, which is one window
    "xcit": ("xcit", {**XCIT, "patch_size": 16}, 48),
    "xcit_small_patches": ("xcit", {**XCIT, "patch_size": 4, "convolutions": 3}, 12),
}


def draw_leaf(path, shape):
    """The leaf at "params/..." or "batch_stats/..."; statistics are unlike fresh ones."""
    collection, _, name = path.partition("/")
    values = draw(name, shape)
    if collection == "params":
        return values
    return (0.4 * values if name.endswith("mean") else 0.5 + np.abs(values)).astype(np.float32)


def drawn(model, x):
    """The model's variables with every leaf from `draw_leaf`."""
    import jax

    from piat_jax.interop.names import flatten, unflatten

    like = jax.eval_shape(model.init, jax.random.key(0), x)
    return unflatten({path: draw_leaf(path, leaf.shape) for path, leaf in flatten(like).items()}, like)


def network(name):
    """Our network, its variables and images for it."""
    from piat_jax.models import create

    kind, options, size = CASES[name]
    model, x = create(kind, num_classes=CLASSES, **options), images(size, 2)
    return model, drawn(model, x), x


def kept(gradient):
    """The part of a gradient that is recorded: every ninth row and column, whose places in patches differ."""
    return gradient[:, ::9, ::9]


def make(name):
    """torchvision's or timm's network of this case."""
    kind, options, size = CASES[name]
    if "resnet" in kind:
        return narrow_resnet(**options)
    if kind == "convnext":
        from timm.models.convnext import ConvNeXt

        net = ConvNeXt(num_classes=CLASSES, depths=options["depths"], dims=options["widths"])
        if "stem" in options:
            net.stem = conv_stem(options["stem"], (2, 2, 1))
        return net
    if kind == "vit":
        from timm.models.vision_transformer import VisionTransformer

        patch_size, width = options["patch_size"], options["width"]
        sizes = {"embed_dim": width, "depth": options["depth"], "num_heads": options["heads"]}
        net = VisionTransformer(size, patch_size, num_classes=CLASSES, **sizes)
        net.patch_embed.proj = conv_stem(tuple(options["stem_width"] * 2**i for i in range(3)), (2, 2, 2), width)
        return net
    if kind == "swin":
        from timm.models.swin_transformer import SwinTransformer

        sizes = {"embed_dim": options["width"], "depths": options["depths"], "num_heads": options["heads"]}
        return SwinTransformer(size, options["patch_size"], num_classes=CLASSES, window_size=options["window"], **sizes)
    from timm.models.xcit import Xcit

    sizes = {"embed_dim": options["width"], "depth": options["depth"], "num_heads": options["heads"]}
    patch_size = 8 if "convolutions" in options else 16  # of which it has 3 convolutions, or 4
    sizes |= {"cls_attn_layers": options["class_depth"], "num_classes": CLASSES}
    net = Xcit(16 * size, patch_size, tokens_norm=True, eta=1.0, **sizes)
    if options["patch_size"] < patch_size:  # as the robust networks of CIFAR are made of those of ImageNet
        net.patch_embed.proj[0][0].stride = (1, 1)
    return net


def narrow_resnet(width, stage_sizes=(2, 2, 2, 2), widen=0):
    """torchvision's ResNet, which is always 64 wide, with fewer channels; with bottlenecks where sizes are given."""
    import torch
    from torchvision.models import resnet

    class Narrow(resnet.ResNet):
        def __init__(self, block):
            torch.nn.Module.__init__(self)
            self._norm_layer, self.dilation, self.groups = torch.nn.BatchNorm2d, 1, 1
            self.inplanes, self.base_width = width, 64 * max(widen, 1)
            self.conv1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
            self.bn1, self.relu = torch.nn.BatchNorm2d(width), torch.nn.ReLU()
            self.maxpool = torch.nn.MaxPool2d(3, 2, 1)
            for index, size in enumerate(stage_sizes):
                layer = self._make_layer(block, width * 2**index, size, stride=2 if index else 1)
                setattr(self, f"layer{index + 1}", layer)
            self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
            self.fc = torch.nn.Linear(8 * width * block.expansion, CLASSES)

    return Narrow(resnet.BasicBlock if stage_sizes == (2, 2, 2, 2) else resnet.Bottleneck)


def conv_stem(widths, strides, features=0):
    """A stem as Singh et al. (2023) describe it, by the names of their files."""
    import torch
    from timm.layers import LayerNorm2d

    layers, before = [], 3
    for width, stride in zip(widths, strides):
        layers += [torch.nn.Conv2d(before, width, 3, stride, 1), LayerNorm2d(width, eps=1e-6), torch.nn.GELU()]
        before = width
    if features:
        layers.append(torch.nn.Conv2d(before, features, 1))

    class Stem(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Sequential(*layers)

        def forward(self, x):
            return self.stem(x)

    return Stem()


def with_weights(net, model, variables):
    """Our weights in the PyTorch network, which takes them strictly."""
    import torch

    from piat_jax.interop import state_dict

    state = {key: torch.from_numpy(np.array(values)) for key, values in state_dict(model, variables).items()}
    net.load_state_dict(state, strict=True)
    return net.eval()


def expected(net, x, classes=CLASSES):
    """PyTorch's logits and the gradient of their weighted sum by the images."""
    import torch

    x = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_()
    logits = net(x)
    (logits * torch.tensor(cotangent(len(x), classes))).sum().backward()
    return logits.detach().numpy(), x.grad.permute(0, 2, 3, 1).numpy()


def ours(model, variables, x, classes=CLASSES):
    """The same of our network."""
    import jax
    import jax.numpy as jnp

    def total(x):
        logits, _ = model.apply(*variables, x, train=False)
        return jnp.sum(logits * cotangent(len(x), classes)), logits

    with jax.default_matmul_precision("highest"):
        gradient, logits = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(x))
    return np.asarray(logits), np.asarray(gradient)


def record():
    define_missing_operators()
    answers = {}
    for name in CASES:
        model, variables, x = network(name)
        found = dict(zip(("logits", "gradient"), expected(with_weights(make(name), model, variables), x)))
        for what, got in zip(found, ours(model, variables, x)):
            off = abs(got - found[what]).max()
            print(f"{name} {what} difference {off:.1e} of {abs(found[what]).max():.1e}")
        answers |= {f"{name}/logits": found["logits"], f"{name}/gradient": kept(found["gradient"])}
    np.savez_compressed(FILE, **answers)


if __name__ == "__main__":
    record()
