import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.interop.vit_weights import (
    adapt_bias_table,
    adapt_patch_kernel,
    adapt_positions,
    adapt_vit,
    google_npz_to_tree,
)
from piat_jax.models import create
from tests.models.torch_reference_vit import draw, paths

RNG = np.random.default_rng(0)


def shapes(name="vit", size=32, patch_size=4, num_classes=10, **options):
    options = {"width": 8, "depth": 2, "heads": 2, "patch_size": patch_size, **options}
    model = create(name, num_classes=num_classes, **options)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image).params
    return {path: leaf.shape for path, leaf in paths(params)}


def filled(shapes):
    return {path: draw(path, shape) for path, shape in shapes.items()}


def tokens(images, kernel):
    size = kernel.shape[0]
    rows, columns = images.shape[0] // size, images.shape[1] // size
    patches = images.reshape(rows, size, columns, size, -1)
    return np.einsum("iajbc,abcd->ijd", patches, kernel)


def test_small_patches_see_the_enlarged_image():
    image, kernel = RNG.uniform(size=(8, 8, 3)), RNG.normal(size=(16, 16, 3, 5))
    enlarged = image.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_allclose(tokens(image, adapt_patch_kernel(kernel, 4)), tokens(enlarged, kernel), rtol=1e-10)
    np.testing.assert_array_equal(adapt_patch_kernel(kernel, 16), kernel)
    with pytest.raises(InputError, match="patch_size=5 must divide the kernel's 16x16"):
        adapt_patch_kernel(kernel, 5)


def test_positions_are_pytorchs():
    # torch 2.13.0, interpolate(mode="bilinear", align_corners=False) of arange(side^2)^1.5, in float64.
    finer = [
        [0.0, 0.625, 1.6856601717798214, 2.8284271247461903],
        [3.247595264191645, 4.577223224071867, 6.377514725549999, 8.048372601466664],
        [8.758947185453795, 10.750290939260518, 13.268058421187375, 15.472993803925414],
        [14.696938456699069, 17.086513907169735, 20.060443360146156, 22.62741699796952],
    ]
    found = adapt_positions((np.arange(9.0) ** 1.5).reshape(1, 9, 1), 16, class_token=False)
    np.testing.assert_allclose(found.reshape(4, 4), finer, rtol=1e-12)
    with_class = np.concatenate([[-5.0], np.arange(196.0) ** 1.5]).reshape(1, 197, 1)
    found = adapt_positions(with_class, 64, class_token=True).ravel()
    np.testing.assert_allclose(found[:4], [-5, 20.681262546258264, 26.2383452872836, 33.12464576173631], rtol=1e-12)
    assert found[1:].sum() == pytest.approx(69801.6885307345, rel=1e-12)
    with pytest.raises(InputError, match="197 positions are not a square grid"):
        adapt_positions(with_class, 64, class_token=False)


def test_tables_of_relative_positions_are_pytorchs():
    # torch 2.13.0, interpolate(mode="bicubic", align_corners=False) of arange(25)^1.5, in float64.
    table = (np.arange(25.0) ** 1.5)[:, None] * np.array([1.0, -2.0])
    coarser = [2.7922079382538696, 6.487950537401705, 11.711318940680043, 32.870232036954235, 41.569219381653056]
    coarser += [50.94285555230705, 82.73864309903949, 94.35456820483923, 106.48379594475276]
    np.testing.assert_allclose(adapt_bias_table(table, 9), np.outer(coarser, [1, -2]), rtol=1e-12)
    finer = adapt_bias_table(table, 49)[:, 0]
    np.testing.assert_allclose(finer[:3], [-0.9432084194611167, -0.5902659042702216, 0.35292453404440555], rtol=1e-12)
    assert finer.sum() == pytest.approx(2327.1688497558944, rel=1e-12)
    np.testing.assert_allclose(adapt_bias_table(table, 25), table, rtol=1e-12)
    with pytest.raises(InputError, match="a table of 25 relative positions for 15: windows must be square"):
        adapt_bias_table(table, 15)


@pytest.mark.parametrize("name", ["vit", "convit"])
def test_a_pretrained_network_for_small_images(name):
    options = {"local_depth": 1} if name == "convit" else {}
    old, new = filled(shapes(name, 224, 16, 1000, **options)), shapes(name, **options)
    adapted = adapt_vit(old, new, key=jax.random.key(0))
    assert {path: value.shape for path, value in adapted.items()} == new
    changed = {path for path in new if not np.array_equal(adapted[path], old[path])}
    assert changed == {"patch_embed/proj/kernel", "pos_embed", "head/kernel", "head/bias"}
    first = int(name == "vit")
    np.testing.assert_array_equal(adapted["pos_embed"][:, :first], old["pos_embed"][:, :first])
    assert not np.any(adapted["head/bias"])
    assert 0.01 < adapted["head/kernel"].std() < 0.03
    # A network that fits is left alone, and one without a head gets one.
    again = adapt_vit({k: v for k, v in adapted.items() if "head" not in k}, new, key=jax.random.key(0))
    for path in new:
        np.testing.assert_array_equal(again[path], adapted[path])


def test_every_path_that_does_not_fit_is_listed():
    old = filled(shapes(width=4))
    old["blocks_2/norm1/bias"] = old.pop("blocks_1/norm1/bias")
    with pytest.raises(InputError) as caught:
        adapt_vit(old, shapes(), key=jax.random.key(0))
    lines = str(caught.value)
    assert "blocks_1/norm1/bias is missing" in lines
    assert "blocks_2/norm1/bias is not in this model" in lines
    assert "blocks_0/attn/qkv/kernel has shape [4, 12]; this model has [8, 24]" in lines


def google(tree, mlp, attention, second_norm):
    """A tree of ours under Google's names."""
    files = {}
    for path, value in tree.items():
        block, _, rest = path.partition("/")
        place = f"Transformer/encoderblock_{block.removeprefix('blocks_')}"
        layer, _, leaf = rest.rpartition("/")
        if layer == "attn/qkv":
            for kind, part in zip(("query", "key", "value"), np.split(value, 3, axis=-1)):
                heads = part.reshape(*part.shape[:-1], 2, 4)
                files[f"{place}/MultiHeadDotProductAttention_{attention}/{kind}/{leaf}"] = heads
        elif layer == "attn/proj":
            value = value.reshape(2, 4, 8) if leaf == "kernel" else value
            files[f"{place}/MultiHeadDotProductAttention_{attention}/out/{leaf}"] = value
        elif layer.startswith("mlp/"):
            files[f"{place}/MlpBlock_{mlp}/Dense_{int(layer[-1]) - 1}/{leaf}"] = value
        elif layer in ("norm1", "norm2"):
            files[f"{place}/LayerNorm_{second_norm if layer == 'norm2' else 0}/{leaf}"] = value
        elif path == "cls_token":
            files["cls"] = value
        elif block == "patch_embed":
            files[f"embedding/{leaf or rest}"] = value
        elif block == "norm":
            files[f"Transformer/encoder_norm/{rest}"] = value
        elif block == "head":
            files[path] = value
    return files


def same(found, wanted):
    assert set(found) == set(wanted)
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path], err_msg=path)


def test_googles_files():
    tree = filled(shapes())
    files = google(tree, 3, 1, 2) | {"Transformer/posembed_input/pos_embedding": tree["pos_embed"]}
    files |= {"pre_logits/kernel": np.ones((8, 8), np.float32)}
    same(google_npz_to_tree(files), tree)
    same(google_npz_to_tree({f"opt/target/{name}": value for name, value in files.items()}), tree)
    with pytest.raises(InputError, match="MAPHead_0/probe"):
        google_npz_to_tree(files | {"MAPHead_0/probe": np.ones(3)})
    with pytest.raises(InputError, match="blocks_1: value/bias is missing"):
        google_npz_to_tree({k: v for k, v in files.items() if not k.endswith("encoderblock_1/"
                            "MultiHeadDotProductAttention_1/value/bias")})  # fmt: skip
    with pytest.raises(InputError, match="no encoderblock"):
        google_npz_to_tree({"head/bias": np.zeros(3)})


def test_big_visions_files():
    # bfloat16 keeps 16 of a float32's bits; the class token's position is part of the token.
    tree = {path: (value.view(np.uint32) & 0xFFFF0000).view(np.float32) for path, value in filled(shapes()).items()}
    tree["pos_embed"][:, 0] = 0
    files = google(tree, 0, 0, 1) | {"pos_embedding": tree["pos_embed"][:, 1:]}
    stacked = {name: value for name, value in files.items() if "encoderblock" not in name}
    for name in [name for name in files if "encoderblock_0" in name]:
        both = [files[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in (0, 1)]
        stacked[name.replace("encoderblock_0", "encoderblock")] = np.stack(both)
    raw = {
        f"params/img/{name}": (value.view(np.uint32) >> 16).astype(np.uint16).view("V2")
        for name, value in stacked.items()
    }
    same(google_npz_to_tree(raw), tree)
