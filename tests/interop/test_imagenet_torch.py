"""ImageNet's networks of timm and torchvision, with random weights: by their names, at full size, where these are."""

import functools

import jax
import numpy as np
import pytest

from piat_jax.experiment.loading import load
from piat_jax.interop.names import flatten, network_of, to_torch, torch_key
from piat_jax.interop.published import PUBLISHED, TIMM, TORCHVISION
from piat_jax.interop.weights import IGNORED
from piat_jax.models import create
from tests.models import torch_reference_imagenet as reference
from tests.models.torch_reference_vit import define_missing_operators, images

torch = pytest.importorskip("torch")
try:
    torchvision = pytest.importorskip("torchvision")
except RuntimeError:  # its wheel beside a build of torch for the CPU
    define_missing_operators()
    torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")


def randomised(net):
    """Weights as after training: no factor on a branch is near 0, no statistic as at the beginning."""
    generator = torch.Generator().manual_seed(0)
    for name, values in net.state_dict().items():
        if values.is_floating_point():
            noise = torch.randn(values.shape, generator=generator)
            if name.endswith("running_var"):
                values.copy_(0.5 + noise.abs())
            elif name.endswith(("gamma", "layer_scale")):
                values.copy_(0.2 * noise)
            elif values.ndim == 1:
                values.copy_((0.1 if name.endswith(("bias", "mean")) else 1.0) + 0.1 * noise)
            elif values.ndim > 1 and not name.endswith("temperature"):
                values.copy_(noise * (1 / max(values[0].numel(), 1)) ** 0.5)
    return net.eval()


def make(name):
    """timm's or torchvision's network of this name."""
    source, _, name = name.partition(":")
    if source == "timm":
        return timm.create_model(name)
    if source == "torchvision":
        return torchvision.models.get_model(name, weights=None)
    net = timm.create_model("deit_small_patch16_224" if "ViT-S" in name else "convnext_tiny")
    if "ViT-S" in name:
        net.patch_embed.proj = reference.conv_stem((48, 96, 192, 384), (2, 2, 2, 2), 384)
    else:
        net.stem = reference.conv_stem((48, 96), (2, 2))
    return net


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet50",
        "timm:wide_resnet50_2",
        "timm:convnext_tiny",
        "torchvision:convnext_tiny",
        "robustbench:Singh2023Revisiting_ConvNeXt-T-ConvStem",
        "robustbench:Singh2023Revisiting_ViT-S-ConvStem",
        "torchvision:vit_b_16",
        "timm:deit_small_patch16_224",
        "timm:swin_tiny_patch4_window7_224",
        "torchvision:swin_t",
        "timm:xcit_small_12_p16_224",
    ],
)
def test_logits_of_a_file_by_its_name(name, tmp_path):
    net, x = randomised(make(name)), images(224)
    prefix = "module.model." if "robustbench" in name else ""
    state = {f"{prefix}{key}": values for key, values in net.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "a.pth")
    loaded, row = load(tmp_path / "a.pth", model=name), PUBLISHED[name]
    assert loaded.origin.report.normalization == ("name" if row.mean else "none")
    mean, std = (
        np.float32(values or default).reshape(1, 1, 1, 3)
        for values, default in ((row.mean, [0] * 3), (row.std, [1] * 3))
    )
    with torch.no_grad():
        wanted = net(torch.tensor(((x - mean) / std).transpose(0, 3, 1, 2))).numpy()
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(functools.partial(loaded.model.apply, train=False))(*loaded.variables, x)[0]
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("name", reference.CASES)
def test_narrow_networks_equal_theirs(name):
    model, variables, x = reference.network(name)
    net = reference.with_weights(reference.make(name), model, variables)
    for got, wanted in zip(reference.ours(model, variables, x), reference.expected(net, x)):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_the_table_says_what_they_say():
    for name in TIMM:
        for tag, row in TIMM[name].items():
            told = timm.get_pretrained_cfg(f"{name}.{tag}")
            size, resize = told.input_size[1], int(told.input_size[1] / told.crop_pct)
            assert (row.mean, row.std, row.num_classes) == (told.mean, told.std, told.num_classes)
            assert (row.size, row.resize, row.interpolation) == (size, resize, told.interpolation)
            assert told.crop_mode == ("squash" if row.squash else "center")
        assert next(iter(TIMM[name])) == timm.get_pretrained_cfg(name).tag
    for name in TORCHVISION:
        weights = torchvision.models.get_model_weights(name)
        for tag, row in TORCHVISION[name].items():
            told = weights[tag].transforms()
            assert (list(row.mean), list(row.std)) == (told.mean, told.std)
            assert ([row.size], [row.resize]) == (told.crop_size, told.resize_size)
            assert row.interpolation == told.interpolation.value
        assert next(iter(TORCHVISION[name])) == weights.DEFAULT.name


def test_every_architecture_of_timm_has_the_tensors_of_ours():
    for name, rows in TIMM.items():
        row = next(iter(rows.values()))
        with torch.device("meta"):
            theirs = {key: tuple(values.shape) for key, values in timm.create_model(name).state_dict().items()}
        model = create(row.model, num_classes=1000, **row.options)
        like = jax.eval_shape(
            model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, row.size, row.size, 3), "float32")
        )
        leaves = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flatten(like).items()}
        ours = {torch_key(path, network_of(model)): to_torch(path, leaf).shape for path, leaf in leaves.items()}
        assert ours == {key: theirs.get(key) for key in ours}, name
        assert all(IGNORED.fullmatch(key) for key in theirs.keys() - ours.keys()), name


@pytest.mark.parametrize(
    ("name", "ours", "modules"),  # how many modules of a block leave out; ConViT's one stands at both branches
    [
        ("convnext_tiny", "convnext_tiny", 1),
        ("swin_tiny_patch4_window7_224", "swin_tiny", 2),
        ("vit_tiny_patch16_224", "vit_tiny", 2),
        ("convit_tiny", "convit_tiny", 1),
        ("xcit_nano_12_p16_224", "xcit_s12", 3),
    ],
)
def test_rates_of_stochastic_depth(name, ours, modules, monkeypatch):
    asked = []

    def rates_of(module, rates, branches):
        asked.extend(rates)
        return (None,) * len(rates)

    monkeypatch.setattr(f"piat_jax.models.{ours.partition('_')[0]}.branch_factors", rates_of)
    model = create(ours, num_classes=10, drop_path=0.3, **({"patch_size": 16} if "vit" in ours else {}))
    jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))
    net = timm.create_model(name, drop_path_rate=0.3)
    theirs = [part.drop_prob for part in net.modules() if isinstance(part, timm.layers.DropPath)]
    # A block of rate 0 has no such module there.
    np.testing.assert_allclose(theirs, [rate for rate in asked if rate for _ in range(modules)], rtol=1e-6)
