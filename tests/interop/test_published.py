"""Published names, files of other code than timm's, and weights of another network than was asked for."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.cli import convert, errors
from piat_jax.core.checks import InputError
from piat_jax.core.types import Variables
from piat_jax.experiment import config, loading
from piat_jax.interop import load_weights, state_dict, weights
from piat_jax.interop.names import flatten, network_of, to_torch, torch_key
from piat_jax.interop.published import IMAGENET, PUBLISHED, published
from piat_jax.interop.tensors import Tensors, write_safetensors
from piat_jax.models import LinenModel, create

CONVNEXT = ("convnext", {"depths": (1, 1), "widths": (4, 6)})
SWIN = ("swin", {"width": 4, "depths": (2, 1), "heads": (1, 2), "window": 2, "patch_size": 2})
VIT = ("vit", {"width": 8, "depth": 1, "heads": 2, "patch_size": 4})
XCIT = ("xcit", {"width": 8, "depth": 1, "heads": 2, "patch_size": 4, "convolutions": 2})


def network(name, options, side=8, num_classes=3):
    """A network with random weights."""
    model = create(name, num_classes=num_classes, **options)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    generator = np.random.default_rng(0)
    return model, Variables(*jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype("f4"), tuple(like)))


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, tuple(got), tuple(expected))


# Each backwards: keys as timm has them into those of other code, the last rule that matches first.
OTHERS = {
    "torchvision's ConvNeXt": (
        CONVNEXT,
        (
            (r"^stem\.", "features.0."),
            (r"^stages\.1\.downsample\.", "features.2."),
            (r"^stages\.0\.blocks\.", "features.1."),
            (r"^stages\.1\.blocks\.", "features.3."),
            (r"\.conv_dw\.", ".block.0."),
            (r"(features\.\d\.\d)\.norm\.", r"\1.block.2."),
            (r"\.mlp\.fc1\.", ".block.3."),
            (r"\.mlp\.fc2\.", ".block.5."),
            (r"\.gamma$", ".layer_scale"),
            (r"^head\.norm\.", "classifier.0."),
            (r"^head\.fc\.", "classifier.2."),
        ),
    ),
    "the authors' ConvNeXt": (
        CONVNEXT,
        (
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"\.blocks\.", "."),
            (r"\.conv_dw\.", ".dwconv."),
            (r"\.mlp\.fc", ".pwconv"),
            (r"^head\.norm\.", "norm."),
            (r"^head\.fc\.", "head."),
        ),
    ),
    "torchvision's Swin": (
        SWIN,
        (
            (r"^patch_embed\.proj\.", "features.0.0."),
            (r"^patch_embed\.norm\.", "features.0.2."),
            (r"^layers\.0\.blocks\.", "features.1."),
            (r"^layers\.1\.downsample\.", "features.2."),
            (r"^layers\.1\.blocks\.", "features.3."),
            (r"\.mlp\.fc1\.", ".mlp.0."),
            (r"\.mlp\.fc2\.", ".mlp.3."),
            (r"^head\.fc\.", "head."),
        ),
    ),
    "the authors' Swin": (SWIN, ((r"^layers\.1\.downsample\.", "layers.0.downsample."), (r"^head\.fc\.", "head."))),
    "torchvision's ViT": (
        VIT,
        (
            (r"^cls_token$", "class_token"),
            (r"^patch_embed\.proj\.", "conv_proj."),
            (r"^pos_embed$", "encoder.pos_embedding"),
            (r"^norm\.", "encoder.ln."),
            (r"^blocks\.", "encoder.layers.encoder_layer_"),
            (r"\.norm(\d)\.", r".ln_\1."),
            (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
            (r"\.attn\.proj\.", ".self_attention.out_proj."),
            (r"\.mlp\.fc1\.", ".mlp.0."),
            (r"\.mlp\.fc2\.", ".mlp.3."),
            (r"^head\.", "heads.head."),
        ),
    ),
    "the authors' XCiT": (XCIT, ((r"^pos_embed\.", "pos_embeder."),)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_code(name, tmp_path):
    (kind, options), rules = OTHERS[name]
    model, variables = network(kind, options)
    state = {}
    for key, values in state_dict(model, variables).items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        state[key] = values.reshape(-1, 1, 1) if key.endswith("layer_scale") else values
    if kind == "xcit":
        for block in range(2):
            for leaf in ("weight", "bias"):
                parts = [state.pop(f"cls_attn_blocks.{block}.attn.{part}.{leaf}") for part in "qkv"]
                state[f"cls_attn_blocks.{block}.attn.qkv.{leaf}"] = np.concatenate(parts)
    if kind == "swin":
        state["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((4, 4), np.int64)
        state["layers.0.blocks.1.attn_mask"] = np.zeros((4, 4, 4), np.float32)
    write_safetensors(tmp_path / "a.safetensors", state)
    loaded = load_weights(tmp_path / "a.safetensors", model, (8, 8, 3))
    assert_same(loaded.variables, variables)
    assert len(loaded.report.dropped) == (2 if kind == "swin" else sum("num_batches" in key for key in state))
    # The report has the file's keys.
    assert {key for key, _, _ in loaded.report.mapped} | set(loaded.report.dropped) == set(state)


def test_every_row_is_of_a_network_that_is_there():
    for row in {(row.model, tuple(row.options)): row for row in PUBLISHED.values()}.values():
        like = create(row.model, num_classes=row.num_classes, mean=row.mean, std=row.std, **row.options)
        assert like.module.num_classes == row.num_classes
    assert published("timm:convnext_tiny") == published("timm:convnext_tiny.in12k_ft_in1k")
    assert published("torchvision:resnet50.IMAGENET1K_V1").resize == 256
    assert str(published("timm:swin_tiny_patch4_window7_224")) == (
        "224 pixels a side, center crop after bicubic resizing of the shorter side to 248"
    )
    assert str(published("timm:convnext_large.fb_in22k_ft_in1k_384")) == (
        "384 pixels a side, center crop after bicubic resizing of both sides to 384"
    )
    assert published("timm:swin_base_patch4_window12_384").options == {"window": 12}
    assert str(published("robustbench:Wong2020Fast")) == "288 pixels a side"
    for name, message in (
        ("tim:convnext_tiny", "source 'tim' is unknown; did you mean 'timm'"),
        ("timm:convnext_tiny.fb_in1", "did you mean 'convnext_tiny.fb_in1k'"),
        ("torchvision:resnet51", "did you mean 'resnet50'"),
        ("robustbench:Singh2023Revisiting_ConvNeXt-T", "did you mean 'Singh2023Revisiting_ConvNeXt-T-ConvStem'"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            published(name)


def test_configs_take_published_names():
    name = "timm:vit_small_patch16_224"
    model = config.load("embedded:pgd_at", {"model.name": name}, checked=False).model
    assert (model.name, dict(model.options), model.mean) == ("vit_small", {"patch_size": 16}, (0.5, 0.5, 0.5))
    changes = {"model.name": name, "model.options.patch_size": "4", "model.mean": "()", "model.std": "()"}
    model = config.load("embedded:pgd_at", changes, checked=False).model
    assert (dict(model.options), model.mean, model.std) == ({"patch_size": 4}, (), ())
    written = config.read("embedded:pgd_at")
    written.model.name = "torchvision:resnet50"
    written.model.mean, written.model.std, written.model.options = (0.5,), (0.25,), {}
    model = config.resolve(written, checked=False).model
    assert (model.name, model.mean, model.std) == ("resnet50_imagenet", (0.5,), (0.25,))
    written.model.name, written.model.options = name, {"patch_size": 4}
    assert dict(config.resolve(written, checked=False).model.options) == {"patch_size": 4}
    with pytest.raises(InputError, match=r"config\.model\.name: model='timm:x' is not in the table of timm's names"):
        config.load("embedded:pgd_at", {"model.name": "timm:x"})


def narrow(monkeypatch, name, **options):
    """The table with a small network in the place of a published one's."""
    row = dataclasses.replace(published(name), model="convnext", options=options, size=16)
    monkeypatch.setitem(PUBLISHED, name, row)


def test_a_file_is_converted_by_its_published_name(tmp_path, monkeypatch, capsys):
    name = "torchvision:convnext_tiny"
    narrow(monkeypatch, name, **CONVNEXT[1])
    model, variables = network(*CONVNEXT, num_classes=7)
    state = state_dict(model, variables)
    write_safetensors(tmp_path / "a.safetensors", state)

    def converted(*arguments, expected=0):
        out = tmp_path / "out" / str(len(list(tmp_path.glob("out/*"))))
        arguments = (str(tmp_path / "a.safetensors"), str(out), "--to=safetensors", f"--model={name}", *arguments)
        assert errors.run(convert.main, list(arguments)) == expected
        return out

    out = converted("--quiet")
    told = capsys.readouterr().out
    assert "published for images of 16 pixels a side, center crop after bilinear resizing of the shorter" in told
    assert "normalisation (from the name): mean (0.485, 0.456, 0.406)" in told
    written = json.loads((out / "config.json").read_text())
    # The network's own name, the file's classes, the table's images.
    assert (written["piat_jax"]["model"], written["num_classes"]) == ("convnext", 7)
    assert written["pretrained_cfg"]["input_size"] == [3, 16, 16]
    loaded = load_weights(out, LinenModel(model.module.clone(mean=IMAGENET[0], std=IMAGENET[1])), (16, 16, 3))
    assert_same(loaded.variables, variables)
    # What is given, and what the file has, go before the name.
    out = converted("--mean=none", "--image_shape=32,32,3", "--quiet")
    assert "normalisation: none" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 32, 32]
    buffers = {"normalize.mean": np.full((1, 3, 1, 1), 0.25, "f4"), "normalize.std": np.full((1, 3, 1, 1), 0.5, "f4")}
    write_safetensors(tmp_path / "a.safetensors", {**{f"model.{k}": v for k, v in state.items()}, **buffers})
    converted("--quiet")
    assert "normalisation (from the file): mean (0.25, 0.25, 0.25)" in capsys.readouterr().out
    converted("--num_classes=5", expected=2)
    assert "has 7 classes and the model 5; give num_classes=7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("of", "options", "side", "model", "message"),
    [
        ("resnet50_imagenet", {}, 64, "resnet50", "it looks like resnet50_imagenet with num_classes=1000; give"),
        ("wrn_50_2", {}, 64, "resnet50_imagenet", "it looks like wrn_50_2 with num_classes=1000"),
        ("resnet18", {}, 32, "resnet18_imagenet", "does not fit ImageNetResNet; it looks like resnet18 with"),
        ("convnext_tiny_convstem", {}, 32, "convnext_tiny", "it looks like convnext_tiny_convstem with num"),
        ("vit_tiny", {"patch_size": 8}, 32, "vit_small", "vit_tiny or deit_tiny with num_classes=1000, patch_size=8"),
        ("swin_tiny", {"window": 2}, 64, "convit_tiny", "like swin_tiny with num_classes=1000, window=2, patch_size=4"),
        ("xcit", {"width": 16, "heads": 2, "depth": 1}, 32, "vit_tiny", "it looks like a XCiT, but none of these"),
    ],
)  # fmt: skip
def test_another_network_is_called_by_its_name(of, options, side, model, message, monkeypatch):
    source = create(of, num_classes=1000, **options)
    like = jax.eval_shape(source.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    # Arrays of these shapes that take no memory.
    leaves = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flatten(like).items()}
    arrays = {torch_key(path, network_of(source)): to_torch(path, leaf) for path, leaf in leaves.items()}
    monkeypatch.setattr(weights, "read_weights", lambda path, unsafe_pickle: Tensors(arrays, ()))
    for adapt in (False, True):
        with pytest.raises(InputError) as caught:
            load_weights("net.pt", create(model, num_classes=1000), (32, 32, 3), adapt=adapt)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_network_of_no_known_kind_is_listed(monkeypatch):
    monkeypatch.setattr(
        weights, "read_weights", lambda path, unsafe_pickle: Tensors({"a.weight": np.zeros(2, "f4")}, ())
    )
    model = create("mlp", num_classes=3, hidden=())
    with pytest.raises(InputError, match=r"unexpected: a\.weight\nmissing: "):
        load_weights("net.pt", model, (2, 2, 1))
    # And one that only lacks a tensor is not another one.
    state = state_dict(*network(*CONVNEXT))
    del state["stages.1.blocks.0.gamma"]
    monkeypatch.setattr(weights, "read_weights", lambda path, unsafe_pickle: Tensors(state, ()))
    with pytest.raises(InputError, match="does not fit ConvNeXt: 0 unexpected, 1 missing"):
        load_weights("net.pt", network(*CONVNEXT)[0], (8, 8, 3))


def test_channels_and_classes_are_read_off_a_run():
    conv = {"depths": (1,), "widths": (8,), "stem": (4, 8), "stem_stride": 4}
    for name, options, side in (("convnext", conv, 8), ("vit", {**VIT[1], "stem_width": 4}, 8), (*SWIN, 8)):
        model = create(name, num_classes=7, **options)
        like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 1)))
        shapes = {path: leaf.shape for path, leaf in flatten(like).items()}
        assert loading._sizes(shapes) == (7, 1)
