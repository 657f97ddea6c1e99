import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from piat_jax.core.checks import InputError
from piat_jax.interop import About, load_weights, save_safetensors, state_dict
from piat_jax.interop.names import flatten, from_torch, to_torch, torch_key
from piat_jax.interop.tensors import check_zip, read_safetensors, write_safetensors
from piat_jax.models import LinenModel, create
from tests.models import conv_golden

SHAPE = (8, 8, 3)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, tuple(got), tuple(expected))


@pytest.fixture
def resnet():
    model, variables = conv_golden.small("resnet")
    return model, variables, state_dict(model, variables)


def save(path, state, **more):
    write_safetensors(path, {**state, **{name: np.asarray(value) for name, value in more.items()}})
    return path


@pytest.mark.parametrize("name", conv_golden.SMALL)
def test_out_and_in_again_bit_for_bit(name, tmp_path):
    model, variables = conv_golden.small(name)
    state = state_dict(model, variables)
    loaded = load_weights(save(tmp_path / "net.safetensors", state), model, SHAPE)
    assert_same(loaded.variables, variables)
    assert loaded.model == model
    assert len(loaded.report.mapped) + len(loaded.report.dropped) == len(state)
    assert loaded.report.normalization == "none"


def test_prefixes_and_normalisation_go(resnet, tmp_path):
    model, variables, state = resnet
    wrapped = {f"module.1.{name}": values for name, values in state.items()}
    buffers = {"module.0.mean": np.float32(MEAN).reshape(1, 3, 1, 1), "module.0.std": np.float32(STD).reshape(3, 1, 1)}
    path = save(tmp_path / "a.safetensors", wrapped, **buffers)
    loaded = load_weights(path, model, SHAPE)
    assert_same(loaded.variables, variables)
    assert (loaded.model.module.mean, loaded.model.module.std) == (MEAN, STD)
    assert loaded.report.normalization == "file"
    # One that the model has already is the same, or is refused.
    given = LinenModel(model.module.clone(mean=MEAN, std=STD))
    assert load_weights(path, given, SHAPE).model == given
    with pytest.raises(InputError, match="make the model without mean and std"):
        load_weights(path, LinenModel(model.module.clone(mean=STD, std=STD)), SHAPE)
    for more in ({"mu": MEAN}, {"mu": MEAN, "sigma": STD, "normalize.mean": STD}):
        with pytest.raises(InputError, match="no single mean and std"):
            load_weights(save(tmp_path / "b.safetensors", state, **more), model, SHAPE)
    twice = save(tmp_path / "c.safetensors", state, **{"model.linear.bias": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=re.escape("has 'linear.bias' twice")):
        load_weights(twice, model, SHAPE)


def test_what_never_runs_is_dropped(tmp_path):
    model, variables = conv_golden.small("wide_resnet")
    state = state_dict(model, variables)
    copies = {name.replace("block1.", "sub_block1."): values for name, values in state.items() if "block1." in name}
    loaded = load_weights(save(tmp_path / "a.safetensors", state, **copies), model, SHAPE)
    assert_same(loaded.variables, variables)
    assert set(copies) <= set(loaded.report.dropped)


def test_everything_that_does_not_fit_is_listed(resnet, tmp_path):
    model, _, state = resnet
    state["extra.weight"] = state.pop("conv1.weight")
    del state["bn1.bias"]
    state["layer2.1.conv2.weight"] = np.zeros((8, 8, 1, 1), np.float32)
    with pytest.raises(InputError) as error:
        load_weights(save(tmp_path / "a.safetensors", state), model, SHAPE)
    text = str(error.value)
    assert "does not fit ResNet: 1 unexpected, 2 missing and 1 of another shape" in text
    assert "unexpected: extra.weight\nmissing: bn1.bias, conv1.weight\n" in text
    assert "layer2.1.conv2.weight: (1, 1, 8, 8) in the file, (3, 3, 8, 8) in the model" in text


@pytest.mark.parametrize(
    ("of", "into", "hint"),
    [
        ("preact_v1", "preact_v2", "it has the weights of preact_resnet18_v1"),
        ("preact_v2", "preact_v1", "it has the weights of preact_resnet18"),
        ("wide_resnet", "resnet", "does not fit ResNet"),
    ],
)
def test_another_network(of, into, hint, tmp_path):
    path = save(tmp_path / "a.safetensors", state_dict(*conv_golden.small(of)))
    with pytest.raises(InputError, match=hint):
        load_weights(path, conv_golden.small(into)[0], SHAPE)


def test_classes(resnet, tmp_path):
    model, variables, state = resnet
    path, five = save(tmp_path / "a.safetensors", state), LinenModel(model.module.clone(num_classes=5))
    with pytest.raises(InputError, match="has 3 classes and the model 5; give num_classes=3, or adapt=True"):
        load_weights(path, five, SHAPE)
    loaded = load_weights(path, five, SHAPE, adapt=True)
    params = loaded.variables.params
    assert params["linear"]["dense"]["kernel"].shape == (8, 5)
    assert np.any(params["linear"]["dense"]["kernel"] != 0)
    assert_same((params["layer2_1"],), (variables.params["layer2_1"],))
    assert len(loaded.report.adapted) == 2


def test_values_must_be_finite(resnet, tmp_path):
    model, _, state = resnet
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match=re.escape("layer1.0.conv1.weight holds values that are not finite")):
        load_weights(save(tmp_path / "a.safetensors", state), model, SHAPE)


def test_the_names_of_a_vision_transformer():
    leaves = {
        "params/cls_token": (1, 1, 4),
        "params/patch_embed/proj/kernel": (4, 4, 3, 8),
        "params/blocks_0/norm1/scale": (4,),
        "params/blocks_11/attn/qkv/kernel": (4, 12),
        "params/blocks_3/attn/gating_param": (2,),
        "params/head/bias": (3,),
    }
    keys = [
        "cls_token",
        "patch_embed.proj.weight",
        "blocks.0.norm1.weight",
        "blocks.11.attn.qkv.weight",
        "blocks.3.attn.gating_param",
        "head.bias",
    ]
    assert [torch_key(path, "VisionTransformer") for path in leaves] == keys
    for path, shape in leaves.items():
        values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        np.testing.assert_array_equal(from_torch(path, to_torch(path, values)), values)
    assert to_torch("params/patch_embed/proj/kernel", np.zeros((4, 4, 3, 8))).shape == (8, 3, 4, 4)


def test_a_folder_keeps_the_normalisation_and_says_what_it_is(resnet, tmp_path):
    model, variables, _ = resnet
    inside = LinenModel(model.module.clone(mean=MEAN, std=STD))
    about = About(
        model="small_resnet",
        num_classes=3,
        image_shape=SHAPE,
        options={"width": 4},
        dataset="cifar10",
        accuracy={"clean": 0.9, "aa": 0.512},
        num_examples=1000,
    )
    folder = tmp_path / "x" / "export"
    folder.parent.mkdir()
    save_safetensors(folder, inside, variables, about)
    loaded = load_weights(folder, model, SHAPE)
    assert_same(loaded.variables, variables)
    assert loaded.model == inside
    card = (folder / "README.md").read_text()
    for text in ("| aa | 51.20 % |", "mean [0.4914", "load_state_dict", "width=4", "net.eval()((images - mean) / std)"):
        assert text in card
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"] == {"input_size": [3, 8, 8], "num_classes": 3, "mean": list(MEAN), "std": list(STD)}
    with pytest.raises(InputError, match="exists; give a new folder"):
        save_safetensors(folder, inside, variables, about)
    # None is written as 0 and 1, and is none again, in networks whose default is another too.
    save_safetensors(tmp_path / "plain", model, variables, about)
    assert load_weights(tmp_path / "plain", model, SHAPE).model == model
    swish, variables = conv_golden.small("dm_preact")
    save_safetensors(tmp_path / "swish", swish, variables, about)
    by_default = LinenModel(swish.module.clone(mean=MEAN, std=STD))
    assert load_weights(tmp_path / "swish", by_default, SHAPE).model == swish
    # What is given for it goes before what a config.json says.
    chosen = LinenModel(swish.module.clone(mean=STD, std=STD))
    loaded = load_weights(tmp_path / "swish", chosen, SHAPE)
    assert (loaded.model, loaded.report.normalization) == (chosen, "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "swish", "x"]


def test_weights_in_parts_are_all_needed(resnet, tmp_path):
    model, variables, state = resnet
    tensors = list(state.items())
    for number, part in enumerate((tensors[::2], tensors[1::2]), 1):
        save(tmp_path / f"model-0000{number}-of-00002.safetensors", dict(part))
    assert_same(load_weights(tmp_path, model, SHAPE).variables, variables)
    save(tmp_path / "model-00002-of-00003.safetensors", state)  # left of an earlier download
    with pytest.raises(InputError, match="has parts of 2 and of 3; keep those of one set"):
        load_weights(tmp_path, model, SHAPE)


def test_npz(resnet, tmp_path):
    model, variables, state = resnet
    np.savez(tmp_path / "a.npz", **state)
    assert_same(load_weights(tmp_path / "a.npz", model, SHAPE).variables, variables)


def test_safetensors_as_the_format_says(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "brain": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
        "count": np.array(7),
        "none": np.zeros((0, 2), np.float32),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "large": np.array([2**40, -1]),
    }
    write_safetensors(path, arrays)
    got = read_safetensors(path)
    for name, values in arrays.items():
        assert got[name].dtype == values.dtype
        np.testing.assert_array_equal(got[name], values)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert (header["half"]["dtype"], header["half"]["shape"]) == ("F16", [2, 3])
    assert (header["brain"]["dtype"], header["__metadata__"]["format"]) == ("BF16", "pt")
    for damaged in (b"", content[:4], content[: 8 + length // 2], content[:-1], b"\xff" * 40):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not a complete safetensors file"):
            read_safetensors(path)


def test_a_flipped_bit_in_what_we_wrote_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": np.arange(30, dtype=np.float32), "v": np.ones((2, 3), np.float16)})
    good = path.read_bytes()
    begin = 8 + int.from_bytes(good[:8], "little")
    swapped = good.replace(b"[2,3]", b"[3,2]")
    for place in range(begin, len(good), 5):
        content = bytearray(good)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(InputError, match="is damaged: its checksum differs; fetch it again"):
            read_safetensors(path)
    path.write_bytes(swapped)
    with pytest.raises(InputError, match="its checksum differs"):
        read_safetensors(path)
    # Others write none.
    header = json.loads(good[8:begin])
    del header["__metadata__"]
    write_by_hand(path, header, good[begin:])
    np.testing.assert_array_equal(read_safetensors(path)["w"], np.arange(30))


def write_by_hand(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_the_checksum_is_that_of_files_of_earlier_versions(tmp_path):
    """They have the tensors in the order they were given in, and the checksum of the header's shortest form."""
    path, values = tmp_path / "a.safetensors", np.arange(6, dtype=np.float32)
    header = {
        "few": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "many": {"dtype": "F32", "shape": [2, 3], "data_offsets": [4, 28]},
    }
    data = bytes([7, 8, 9, 10]) + values.tobytes()
    shortest = json.dumps(header, separators=(",", ":")).encode()
    metadata = {"format": "pt", "piat_jax.crc32": f"{zlib.crc32(shortest + data):08x}"}
    write_by_hand(path, {"__metadata__": metadata, **header}, data)
    np.testing.assert_array_equal(read_safetensors(path)["many"], values.reshape(2, 3))
    write_by_hand(path, {"__metadata__": metadata, **header}, data[:-1] + b"?")
    with pytest.raises(InputError, match="its checksum differs"):
        read_safetensors(path)


def test_a_flipped_bit_in_a_zip_file_of_weights_is_noticed(resnet, tmp_path):
    model, _, state = resnet
    path = tmp_path / "a.npz"  # PyTorch's files are zip files as well, and PyTorch does not look at the checksums
    np.savez(path, **state)
    good = path.read_bytes()
    check_zip(path)
    place = good.index(state["conv1.weight"].tobytes()) + 5
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    with pytest.raises(InputError, match=r"is damaged: the checksum of conv1.weight.npy differs; fetch it again"):
        check_zip(path)
    with pytest.raises(InputError, match=r"is not a complete \.npz of arrays"):
        load_weights(path, model, SHAPE)
    path.write_bytes(b"no zip file")
    check_zip(path)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("F8_E4M3", jnp.float8_e4m3fn),
        ("F8_E5M2", jnp.float8_e5m2),
        ("U16", np.uint16),
        ("U32", np.uint32),
        ("U64", np.uint64),
    ],
)
def test_every_type_of_the_format_that_numpy_has_is_read(tmp_path, code, kind):
    path, values = tmp_path / "a.safetensors", np.array([0, 1, 2, 12], kind)
    write_by_hand(path, {"x": {"dtype": code, "shape": [2, 2], "data_offsets": [0, values.nbytes]}}, values.tobytes())
    got = read_safetensors(path)["x"]
    assert (got.dtype, type(got)) == (values.dtype, np.ndarray)
    np.testing.assert_array_equal(np.asarray(got, np.float32), [[0, 1], [2, 12]])


@pytest.mark.parametrize(("code", "size"), [("F4", 2), ("F8_E8M0", 4), ("C64", 32)])
def test_other_types_are_named(tmp_path, code, size):
    write_by_hand(
        tmp_path / "a.safetensors", {"x": {"dtype": code, "shape": [4], "data_offsets": [0, size]}}, bytes(size)
    )
    with pytest.raises(InputError, match=f"'x' is stored as {code}, which is not supported; save it as F32"):
        read_safetensors(tmp_path / "a.safetensors")


def test_the_library_reads_what_we_write(resnet, tmp_path):
    _, _, state = resnet
    save(tmp_path / "a.safetensors", state)
    got = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert set(got) == set(state)
    safetensors.numpy.save_file(state, tmp_path / "b.safetensors")
    for name, values in read_safetensors(tmp_path / "b.safetensors").items():
        np.testing.assert_array_equal(values, state[name])
        np.testing.assert_array_equal(got[name], values)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pt", "is not a file"),
        ("a.txt", "has an unknown format"),
        ("empty", "holds no weights"),
        ("a.npz", "not a complete"),
    ],
)
def test_files_that_cannot_be_read(name, message, tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.npz").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / name, create("resnet18", num_classes=10), (32, 32, 3))


def test_every_leaf_has_a_name_of_its_own():
    for name in conv_golden.SMALL:
        model, variables = conv_golden.small(name)
        keys = [torch_key(path, type(model.module).__name__) for path in flatten(variables)]
        assert len(set(keys)) == len(keys)
