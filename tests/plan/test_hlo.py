"""The reader of optimised HLO, on texts as XLA writes them."""

from pathlib import Path

import pytest

from piat_jax.core.checks import InputError
from piat_jax.plan.hlo import arrays_of, parse

GPU = (Path(__file__).parent / "gpu.hlo").read_text()
TPU = (Path(__file__).parent / "tpu.hlo").read_text()


def test_computations_and_the_entry():
    module = parse(GPU)
    assert module.entry == "main"
    assert [len(each.instructions) for each in module.computations.values()] == [3, 5, 6, 2, 3, 9, 4, 2, 3, 18, 4, 12]
    assert module.computations["step_body"].root.name == "tuple.3"
    assert module.computations["fused_put"].parameter(1).name == "param_1.1"
    assert [user.name for user in module.computations["fused_put"].users("zero.1")] == ["put"]


def test_an_instruction():
    conv = parse(GPU).computations["attack_body"].instructions["cudnn-conv.1"]
    assert (conv.opcode, conv.operands) == ("custom-call", ("images", "filter"))
    assert [(array.dtype, array.shape, array.layout) for array in conv.arrays] == [
        ("f32", (4, 8, 8, 5), "3,2,1,0"),
        ("u8", (4096,), "0"),
    ]
    assert conv.attribute("window") == "size=3x3 pad=1_1x1_1"
    assert conv.attribute("custom_call_target") == '"__cudnn$convForward"'
    assert conv.attribute("dim_labels") == "b01f_o01i->b01f"
    assert conv.attribute("nothing") == ""


def test_called_computations():
    step = parse(GPU).computations["step_body"].instructions
    assert step["while.1"].called("body", "condition") == ["attack_body", "attack_condition"]
    assert step["cond.1"].called("branch_computations", "true_computation", "false_computation") == ["short", "long"]
    branches = GPU.replace("true_computation=%short, false_computation=%long", "branch_computations={%short, %long}")
    assert parse(branches).computations["step_body"].instructions["cond.1"].called("branch_computations") == [
        "short",
        "long",
    ]


def test_what_stands_in_attributes_ends_nothing():
    convert = parse(GPU).computations["fused_take"].root
    assert (convert.inside, convert.operands) == ("%slice.1", ("slice.1",))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[]", 4),
        ("pred[3]{0}", 3),
        ("bf16[2,3]{1,0}", 12),
        ("s4[10]{0}", 5),
        ("f8e4m3fn[7]{0}", 7),
        ("c64[2]{0}", 16),
        ("u32[0]{0}", 0),
        ("token[]", 0),
        ("(f32[2]{0}, (s8[3]{0}, f64[1]{0}))", 19),
        # In tiles of 8 x 128 of the two fastest axes, 3 and 0: 14 x 14 x 8 x 128.
        ("bf16[32,14,14,8]{0,3,2,1:T(8,128)(2,1)S(1)}", 2 * 14 * 14 * 8 * 128),
        ("f32[5]{0:T(128)}", 512),
    ],
)
def test_bytes(text, size):
    assert sum(array.size for array in arrays_of(text)) == size


def test_memory_on_the_chip_is_told_apart():
    body = parse(TPU).computations["body"].instructions
    assert body["images"].arrays[0].on_chip
    assert not body["filter"].arrays[0].on_chip


@pytest.mark.parametrize("text", ["", "HloModule a\n", GPU.replace("ENTRY ", ""), "module @jit_f {\n}\n"])
def test_what_is_no_program_is_refused(text):
    with pytest.raises(InputError, match="no HLO module with an ENTRY"):
        parse(text)


def test_a_line_that_was_cut_is_refused():
    with pytest.raises(InputError, match="unclosed parenthesis"):
        parse(GPU.replace("tuple(%counter, %gradient, %filter)", "tuple(%counter, %gra"))
