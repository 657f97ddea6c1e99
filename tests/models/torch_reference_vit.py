"""What timm makes of our Vision Transformers' weights; run once to record what test_vit.py expects.

`python -m tests.models.torch_reference_vit` (timm 1.0.31, torch 2.13.0, CPU) compares at 32 pixels, and writes
golden/vit.npz and golden/convit.npz at 16; with `vit_base`, `deit_small` or `convit_base` it compares these. The tests
need neither: every weight is drawn by its path.
"""

import functools
import sys
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
CLASSES = 5
TINY = {"width": 16, "depth": 3, "heads": 4}
OPTIONS = {"vit": TINY, "convit": {**TINY, "width": 20, "heads": 5, "local_depth": 2}}  # five heads: not a square
OPEN, SOME = (True, True, True), (True, False, True)  # gates; True lets the gradient through


def draw(path, shape):
    """The leaf called `path`, from NumPy's frozen generator: kernels keep the size of what they are applied to."""
    normal = np.random.RandomState(zlib.crc32(path.encode())).standard_normal(shape)
    scale = {"kernel": np.prod(shape[:-1]) ** -0.5, "bias": 0.2, "scale": 0.2}.get(path.rpartition("/")[2], 0.5)
    return (scale * normal + (path.endswith("scale"))).astype(np.float32)


def images(size, batch=1):
    """Images in [0, 1]."""
    return np.random.RandomState(size).uniform(size=(batch, size, size, 3)).astype(np.float32)


def cotangent(batch, classes=CLASSES):
    """What the logits are multiplied by before they are summed and differentiated."""
    return np.random.RandomState(7).standard_normal((batch, classes)).astype(np.float32)


def paths(params, prefix=""):
    """Every leaf of nested dicts by its path."""
    for name, value in params.items():
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def drawn(model, x):
    """The model's parameters with every leaf from `draw`."""
    import jax

    shapes = jax.eval_shape(model.init, jax.random.key(0), x).params
    return jax.tree.map_with_path(
        lambda path, leaf: jax.numpy.asarray(draw(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape)),
        shapes,
    )


def to_torch(path, value):
    """timm's name and tensor for one of our leaves."""
    import torch

    parts = [part.replace("_", ".", 1) if part.startswith("blocks_") else part for part in path.split("/")]
    if parts[-1] == "kernel":
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    parts[-1] = "weight" if parts[-1] in ("kernel", "scale") else parts[-1]
    return ".".join(parts), torch.tensor(np.ascontiguousarray(value))


@functools.cache
def define_missing_operators():
    """The wheel of torchvision, which timm imports, asks for operators that CPU builds of torch do not have."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def timm_model(name, size, params, options, classes=CLASSES, patch_size=4):
    """timm's network with these weights, loaded strictly."""
    define_missing_operators()
    from timm.models.convit import ConVit
    from timm.models.vision_transformer import VisionTransformer

    shared = {
        "img_size": size,
        "patch_size": patch_size,
        "num_classes": classes,
        "embed_dim": options["width"],
        "depth": options["depth"],
        "num_heads": options["heads"],
    }
    if name == "vit":
        model = VisionTransformer(**shared)
    else:
        shared["embed_dim"] //= options["heads"]  # of one head, there
        model = ConVit(**shared, local_up_to_layer=options["local_depth"])
    # Its non-persistent tables of relative positions are no part of the weights.
    model.load_state_dict(dict(to_torch(*item) for item in paths(params)), strict=True)
    return model.eval()


def expected(model, x, keep=None, classes=CLASSES):
    """Logits and the gradient by the images, without that of the attention branches whose gate is closed."""
    import torch

    hooks = [
        block.attn.register_forward_hook(lambda module, inputs, output: output.detach())
        for block, gate in zip(model.blocks, keep or ())
        if not gate
    ]
    x = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_()
    logits = model(x)
    (logits * torch.tensor(cotangent(len(x), classes))).sum().backward()
    for hook in hooks:
        hook.remove()
    return logits.detach().numpy(), x.grad.permute(0, 2, 3, 1).numpy()


def ours(model, params, x, keep=None, classes=CLASSES):
    """The same of our network."""
    import jax
    import jax.numpy as jnp

    state = {} if keep is None else {"attention_gates": {"keep": jnp.asarray(keep)}}

    def total(x):
        logits, _ = model.apply(params, state, x, train=False)
        return jnp.sum(logits * cotangent(len(x), classes)), logits

    with jax.default_matmul_precision("highest"):
        gradient, logits = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(x))
    return np.asarray(logits), np.asarray(gradient)


def compare(title, name, size, options, batch=1, keeps=(None,), classes=CLASSES, patch_size=4):
    """Print the largest differences from timm's; return timm's answers."""
    from piat_jax.models import create

    model = create(name, num_classes=classes, patch_size=patch_size, **options)
    x = images(size, batch)
    params = {path: draw(path, leaf.shape) for path, leaf in paths(drawn(model, x))}
    theirs = timm_model(name, size, params, options, classes, patch_size)
    answers = {}
    for keep in keeps:
        answers[keep] = expected(theirs, x, keep, classes)
        for what, got, wanted in zip(
            ("logits", "gradient"), ours(model, drawn(model, x), x, keep, classes), answers[keep]
        ):
            print(f"{title} {what} gates={keep} difference {abs(got - wanted).max():.1e} of {abs(wanted).max():.1e}")
    return answers


def record():
    for name, options in OPTIONS.items():
        compare(f"{name} 32/4", name, 32, options, 3, (None, OPEN, SOME))
        answers = compare(f"{name} 16/4", name, 16, options, 1, (None, SOME))
        (logits, gradient), (_, gated) = answers[None], answers[SOME]
        np.savez_compressed(GOLDEN / f"{name}.npz", logits=logits, gradient=gradient, gated_gradient=gated)


FULL = {
    "vit_base": ("vit", {"width": 768, "depth": 12, "heads": 12}),
    "deit_small": ("vit", {"width": 384, "depth": 12, "heads": 6}),
    "convit_base": ("convit", {"width": 768, "depth": 12, "heads": 16, "local_depth": 10}),
}

if __name__ == "__main__":
    if len(sys.argv) > 1:
        compare(sys.argv[1], FULL[sys.argv[1]][0], 32, FULL[sys.argv[1]][1], 2)
        compare(f"{sys.argv[1]} 224/16", *FULL[sys.argv[1]][:1], 224, FULL[sys.argv[1]][1], 1, patch_size=16)
    else:
        record()
