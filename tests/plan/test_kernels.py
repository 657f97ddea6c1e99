"""Bytes, operations and loops of a program, against what its shapes say."""

import itertools
import math

import pytest

from piat_jax.plan.hlo import parse
from piat_jax.plan.kernels import read_loops
from tests.plan.test_hlo import GPU, TPU

IMAGES, FILTER, FEATURES = 4 * 4 * 8 * 8 * 2, 4 * 5 * 3 * 3 * 2, 4 * 4 * 8 * 8 * 5
CONVOLUTION = 2 * 4 * (5 * 2) * (8 * 3 - 2) ** 2  # on each axis 8 places see 3 taps, but for one at either end


def kernels(loop):
    return {kernel.name: kernel for kernel in loop.kernels}


def only(text, instruction, around="main"):
    """The kernel of one instruction of a program."""
    (kernel,) = (
        kernel for loop in read_loops(parse(text)).walk() for kernel in loop.kernels if kernel.name == instruction
    )
    return kernel


def test_loops_nest_and_know_their_trips():
    program = read_loops(parse(GPU))
    (step,) = program.loops
    (attack,) = step.loops
    assert [(loop.name, loop.trips, loop.known) for loop in program.walk()] == [
        ("program", 1, "exactly"),
        ("while.2", 1, ""),  # data says when the loop over steps ends
        ("while.1", 3, "exactly"),
    ]
    assert attack.loops == ()


def test_a_step_is_its_own_kernels_and_each_trip_of_the_attack():
    (step,) = read_loops(parse(GPU)).loops
    (attack,) = step.loops
    assert step.total(lambda kernel: kernel.flops) == 3 * 2 * CONVOLUTION
    assert attack.total(lambda kernel: kernel.flops) == 2 * CONVOLUTION
    assert step.total(lambda kernel: 1) == len(step.kernels) + 3 * len(attack.kernels)


def test_without_the_compilers_word_a_condition_says_how_often():
    (step,) = read_loops(parse(GPU.replace('"known_trip_count":{"n":"3"},', ""))).loops
    assert [(loop.trips, loop.known) for loop in step.loops] == [(3, "exactly")]
    other_way = GPU.replace('"known_trip_count":{"n":"3"},', "").replace("three), direction=LT", "three), direction=GT")
    (step,) = read_loops(parse(other_way)).loops
    assert [(loop.trips, loop.known) for loop in step.loops] == [(1, "")]


def test_where_data_may_end_a_loop_earlier_its_trips_are_the_most():
    (attack,) = read_loops(parse(TPU)).loops
    assert (attack.trips, attack.known) == (7, "at most")


def test_convolutions_of_cudnn():
    forward, backward = only(GPU, "cudnn-conv.1"), only(GPU, "cudnn-conv-bw-input.1")
    assert (forward.read, forward.written) == (IMAGES + FILTER, FEATURES)  # without its workspace
    assert (backward.read, backward.written) == (FEATURES + FILTER, IMAGES)
    assert forward.flops == backward.flops == CONVOLUTION
    assert (forward.kind, forward.rate, forward.is_convolution) == ("convForward", "float32", True)
    assert (backward.kind, backward.rate) == ("convBackwardInput", "tf32")  # no precision was asked for
    low = only(GPU.replace("f32[5,3,3,2]", "bf16[5,3,3,2]").replace("f32[4,8,8", "bf16[4,8,8"), "cudnn-conv.1")
    assert (low.rate, low.read) == ("bfloat16", (IMAGES + FILTER) / 2)


def test_the_gradient_by_the_filter():
    text = GPU.replace(
        "custom-call(%logits, %filter), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, "
        'custom_call_target="__cudnn$convBackwardInput"',
        "custom-call(%images, %logits), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, "
        'custom_call_target="__cudnn$convBackwardFilter"',
    ).replace(
        "%cudnn-conv-bw-input.1 = (f32[4,8,8,2]{3,2,1,0}, u8[0]{0})",
        "%cudnn-conv-bw-input.1 = (f32[5,3,3,2]{3,2,1,0}, u8[0]{0})",
    )
    found = only(text, "cudnn-conv-bw-input.1")
    assert (found.read, found.written, found.flops) == (IMAGES + FEATURES, FILTER, CONVOLUTION)


def test_a_strided_gradient_by_the_images_has_the_operations_of_its_forward():
    window = "pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom"  # of the gradient alone: the forward has a precision
    strided = GPU.replace(window, f"stride=2x2 {window}")
    strided = strided.replace("%logits = f32[4,8,8,5]", "%logits = f32[4,4,4,5]")
    found = only(strided, "cudnn-conv-bw-input.1")
    assert found.flops == 2 * 4 * (5 * 2) * (4 * 3 - 1) ** 2  # 4 places see 3 taps, but for the first one
    assert (found.read, found.written) == (4 * 4 * 4 * 4 * 5 + FILTER, IMAGES)


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pad", [0, 1, 2])
@pytest.mark.parametrize("spread", [1, 2])
@pytest.mark.parametrize("holes", [1, 2])
def test_products_that_meet_a_pixel_are_counted(size, taps, stride, pad, spread, holes):
    wide, reach = (size - 1) * holes + 1 + 2 * pad, (taps - 1) * spread + 1
    if wide < reach:
        pytest.skip("the window is larger than the image")
    places = (wide - reach) // stride + 1
    pixels = {pad + holes * pixel for pixel in range(size)}
    pairs = sum(place * stride + tap * spread in pixels for place, tap in itertools.product(range(places), range(taps)))
    window = f"size={taps}x1 stride={stride}x1 pad={pad}_{pad}x0_0 lhs_dilate={holes}x1 rhs_dilate={spread}x1"
    text = f"""HloModule one
ENTRY %main (a: f32[6,{size},1,4], b: f32[{taps},1,4,3]) -> f32[6,{places},1,3] {{
  %a = f32[6,{size},1,4]{{3,2,1,0}} parameter(0)
  %b = f32[{taps},1,4,3]{{3,2,1,0}} parameter(1)
  ROOT %c = f32[6,{places},1,3]{{3,2,1,0}} convolution(%a, %b), window={{{window}}}, dim_labels=b01f_01io->b01f
}}"""
    assert only(text, "c").flops == 2 * 6 * 3 * 4 * pairs


@pytest.mark.parametrize(
    ("groups", "kernel", "products"),
    [
        ("feature_group_count=2", (3, 3, 2, 6), 6 * 2),
        ("batch_group_count=2", (3, 3, 4, 6), 6 * 4 / 2),
    ],
)
def test_grouped_convolutions(groups, kernel, products):
    batch = 4 if "batch" in groups else 8
    shape = ",".join(map(str, kernel))
    text = f"""HloModule one
ENTRY %main (a: f32[8,5,5,4], b: f32[{shape}]) -> f32[{batch},3,3,6] {{
  %a = f32[8,5,5,4]{{3,2,1,0}} parameter(0)
  %b = f32[{shape}]{{3,2,1,0}} parameter(1)
  ROOT %c = f32[{batch},3,3,6]{{3,2,1,0}} convolution(%a, %b), window={{size=3x3}}, dim_labels=b01f_01io->b01f, {groups}
}}"""
    assert only(text, "c").flops == 2 * 8 * products * 9 * 9


def test_matrix_products():
    found = only(GPU, "gemm_fusion_dot.3")
    assert (found.read, found.written, found.flops) == (2 * (4 * 6 + 6 * 5), 2 * 4 * 5, 2 * 4 * 5 * 6)
    assert (found.kind, found.rate, found.is_convolution) == ("gemm_fusion_dot", "bfloat16", False)
    config = 'backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}'
    call = f'custom-call(%left, %right), custom_call_target="__cublas$gemm", {config}'
    text = GPU.replace("fusion(%left, %right), kind=kCustom, calls=%fused_dot", call)
    assert only(text, "gemm_fusion_dot.3").flops == 2 * 4 * 5 * 6


def test_of_what_is_sliced_only_the_slice_is_read():
    taken = only(GPU, "loop_convert_fusion.7")
    assert (taken.read, taken.written) == (4 * 8 * 8 * 2 + 4, IMAGES)  # bytes of uint8, and the index


def test_of_what_is_updated_in_place_only_the_update_is_written():
    put = only(GPU, "loop_dynamic_update_slice_fusion")
    assert (put.read, put.written) == (16 + 4, 16)


def test_collectives():
    (step,) = read_loops(parse(GPU)).loops
    found = {kernel.kind: kernel for kernel in step.kernels if kernel.sent}
    assert not any("done" in kernel.name for kernel in step.kernels)  # the end of one is no work of its own
    assert {kind: (kernel.read, kernel.written, kernel.sent) for kind, kernel in found.items()} == {
        "all-reduce": (16, 16, 16),
        "all-gather": (16, 128, 128),
    }


def test_the_longer_branch_counts():
    (step,) = read_loops(parse(GPU)).loops
    assert {"abs", "sqrt"} <= kernels(step).keys()
    assert "negate" not in kernels(step)


def test_layout_copies():
    (step,) = read_loops(parse(GPU)).loops
    assert only(GPU, "wrapped_transpose.1").is_layout_copy
    assert not any(kernel.is_layout_copy for kernel in step.kernels)
    # One that reads the array as it lies is none, nor one that does something else as well.
    as_it_lies = GPU.replace("%turn = f32[5,3,3,2]{3,2,1,0}", "%turn = f32[5,3,3,2]{0,3,2,1}")
    assert not only(as_it_lies, "wrapped_transpose.1").is_layout_copy
    other = GPU.replace(
        "parameter(0)\n  ROOT %turn", "parameter(0)\n  %n = f32[3,3,2,5]{3,2,1,0} negate(%param_0.2)\n  ROOT %turn"
    )
    assert not only(other, "wrapped_transpose.1").is_layout_copy
    copied = GPU.replace("sqrt(%abs)", "copy(%abs)")
    assert not only(copied, "sqrt").is_layout_copy  # a vector has one order
    swapped = copied.replace("f32[4]{0} copy", "f32[2,2]{0,1} copy").replace("f32[4]{0} abs", "f32[2,2]{1,0} abs")
    assert only(swapped, "sqrt").is_layout_copy


def test_a_tpus_tiles_and_its_memory_on_the_chip():
    program = read_loops(parse(TPU))
    (attack,) = program.loops
    fusion, copy = kernels(attack)["fusion.2"], kernels(program)["copy-start.1"]
    assert (copy.read, copy.written) == (2 * 14 * 14 * 8 * 128, 0)
    assert (fusion.read, fusion.written) == (2 * 3 * 3 * 8 * 128, 2 * 14 * 14 * 16 * 128)
    assert fusion.flops == 2 * 32 * (8 * 16) * (14 * 3 - 2) ** 2
    assert (fusion.rate, fusion.is_convolution) == ("bfloat16", True)
    assert math.isclose(program.total(lambda kernel: kernel.flops), 7 * fusion.flops)
