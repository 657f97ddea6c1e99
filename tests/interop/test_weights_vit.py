"""Weights of Vision Transformers: timm's names, other patches and images, Google's files, and ONNX."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.types import Variables
from piat_jax.interop import load_weights, state_dict, write_onnx
from piat_jax.interop.names import flatten
from piat_jax.interop.tensors import write_safetensors
from piat_jax.interop.vit_weights import adapt_bias_table, adapt_patch_kernel
from piat_jax.models import create

SMALL, LARGE = (8, 8, 3), (32, 32, 3)
OPTIONS = {"width": 8, "depth": 2, "heads": 2}


def network(name="vit", patch_size=4, num_classes=3, **options):
    return create(name, num_classes=num_classes, patch_size=patch_size, **OPTIONS, **options)


def random_variables(model, shape):
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    generator = np.random.default_rng(0)
    return Variables(*jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), tuple(like)))


def saved(path, model, shape):
    variables = random_variables(model, shape)
    write_safetensors(path, state_dict(model, variables))
    return variables


@pytest.mark.parametrize(("name", "options"), [("vit", {}), ("convit", {"local_depth": 1})])
def test_out_and_in_again_by_timms_names(name, options, tmp_path):
    model = network(name, **options)
    variables = saved(tmp_path / "a.safetensors", model, SMALL)
    state = state_dict(model, variables)
    assert {"cls_token", "blocks.1.attn.qkv.weight", "patch_embed.proj.weight", "norm.bias"} <= set(state)
    assert state["patch_embed.proj.weight"].shape == (8, 3, 4, 4)
    loaded = load_weights(tmp_path / "a.safetensors", model, SMALL)
    jax.tree.map(np.testing.assert_array_equal, tuple(loaded.variables), tuple(variables))


def test_other_patches_positions_and_classes_on_request_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    variables = saved(path, network(patch_size=8, num_classes=5), LARGE)
    model = network()
    with pytest.raises(InputError, match=re.escape("patch_embed.proj.weight: (8, 8, 3, 8) in the file, (4, 4, 3, 8)")):
        load_weights(path, model, SMALL)
    loaded = load_weights(path, model, SMALL, adapt=True)
    kernel = loaded.variables.params["patch_embed"]["proj"]["kernel"]
    # The same token for an image whose pixels are repeated twice each way.
    expected = np.asarray(variables.params["patch_embed"]["proj"]["kernel"]).reshape(4, 2, 4, 2, 3, 8).sum((1, 3))
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-5)
    assert loaded.variables.params["pos_embed"].shape == (1, 5, 8)
    adapted = " ".join(loaded.report.adapted)
    assert all(part in adapted for part in ("proj/kernel", "pos_embed", "head/kernel", "head/bias"))
    np.testing.assert_array_equal(
        loaded.variables.params["blocks_1"]["mlp"]["fc1"]["kernel"],
        variables.params["blocks_1"]["mlp"]["fc1"]["kernel"],
    )


def test_a_swin_of_other_windows_and_patches_is_adapted(tmp_path):
    options = {"width": 4, "depths": (1, 1), "heads": (1, 2)}
    old = create("swin", num_classes=3, **options, window=4, patch_size=4)
    variables = saved(tmp_path / "a.safetensors", old, LARGE)
    model = create("swin", num_classes=3, **options, window=3, patch_size=2)
    with pytest.raises(InputError, match=r"its windows have 4 tokens: give the model window=4 \(.*\), or adapt=True"):
        load_weights(tmp_path / "a.safetensors", create("swin", num_classes=3, **options, window=3), LARGE)
    loaded = load_weights(tmp_path / "a.safetensors", model, (16, 16, 3), adapt=True)
    assert len(loaded.report.adapted) == 3  # the patches, a table of each block
    before, after = flatten(variables), flatten(loaded.variables)
    for path, leaf in after.items():
        if path.endswith("relative_position_bias_table"):
            wanted = adapt_bias_table(np.asarray(before[path]), 25)
        elif path.startswith("params/patch_embed/proj/kernel"):
            wanted = adapt_patch_kernel(np.asarray(before[path]), 2)
        else:
            wanted = before[path]
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6)


def test_googles_files(tmp_path):
    model = network()
    variables = random_variables(model, SMALL)
    leaves = {path.removeprefix("params/"): np.asarray(leaf) for path, leaf in flatten(variables).items()}
    renamed = {"cls_token": "cls", "pos_embed": "Transformer/posembed_input/pos_embedding"}
    google = {}
    for path, values in leaves.items():
        block = re.fullmatch(r"blocks_(\d)/(.*)/(\w+)", path)
        where = f"Transformer/encoderblock_{block[1]}" if block else ""
        if block and block[2] == "attn/qkv":
            for index, name in enumerate(("query", "key", "value")):
                part = values[..., 8 * index : 8 * index + 8]
                shape = (8, 2, 4) if block[3] == "kernel" else (2, 4)
                google[f"{where}/MultiHeadDotProductAttention_1/{name}/{block[3]}"] = part.reshape(shape)
        elif block and block[2] == "attn/proj":
            shape = (2, 4, 8) if block[3] == "kernel" else (8,)
            google[f"{where}/MultiHeadDotProductAttention_1/out/{block[3]}"] = values.reshape(shape)
        elif block:
            layer = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2", "mlp/fc1": "MlpBlock_3/Dense_0"}
            google[f"{where}/{layer.get(block[2], 'MlpBlock_3/Dense_1')}/{block[3]}"] = values
        else:
            name = path.replace("patch_embed/proj", "embedding").replace("norm/", "Transformer/encoder_norm/")
            google[renamed.get(path, name)] = values
    np.savez(tmp_path / "a.npz", **google)
    loaded = load_weights(tmp_path / "a.npz", model, SMALL)
    jax.tree.map(np.testing.assert_array_equal, tuple(loaded.variables), tuple(variables))
    assert len(loaded.report.mapped) == len(leaves)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit", {"patch_size": 4, **OPTIONS}),
        ("convit", {"patch_size": 4, **OPTIONS, "local_depth": 1}),
        ("imagenet_resnet", {"width": 2, "stage_sizes": (1, 1)}),
        ("convnext", {"depths": (1, 1), "widths": (4, 6), "stem": (4, 4), "stem_stride": 4}),
        ("swin", {"width": 4, "depths": (2, 1), "heads": (1, 2), "window": 3, "patch_size": 2}),
        ("xcit", {"width": 8, "depth": 1, "heads": 2, "patch_size": 4, "convolutions": 2}),
    ],
)
def test_onnx(name, options, tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = create(name, num_classes=3, **options)
    variables = random_variables(model, SMALL)
    state = jax.tree.map(np.abs, variables.model_state)  # variances
    logits_fn = make_logits_fn(model, Variables(variables.params, state))
    write_onnx(tmp_path / "net.onnx", logits_fn, SMALL)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).uniform(size=(3, *SMALL)).astype(np.float32)
    expected = jax.jit(lambda x: logits_fn(x))(x)
    scale = 1e-4 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(session.run(None, {"images": x})[0], expected, rtol=1e-4, atol=scale)
