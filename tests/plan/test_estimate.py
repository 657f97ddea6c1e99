"""Bounds of time, and memory, in closed form."""

import dataclasses

import pytest

from piat_jax.plan.estimate import (
    Estimate,
    Memory,
    block_seconds,
    by_kind,
    dollars,
    epoch_seconds,
    kernel_seconds,
    loop_seconds,
    next_batch,
    own_seconds,
)
from piat_jax.plan.kernels import Kernel, Loop
from piat_jax.plan.targets import TARGETS

# 100 bytes and 1,000 operations a second in bfloat16.
TARGET = dataclasses.replace(
    TARGETS["h100"], bandwidth=100.0, memory=1000.0, flops={"bfloat16": 1000.0, "tf32": 500.0, "float32": 50.0}
)
COPY = Kernel("a", "copy", 30.0, 20.0)  # half a second
CONV = Kernel("b", "conv", 10.0, 10.0, flops=2000.0, rate="bfloat16", is_convolution=True)  # two seconds
ATTACK = Loop("attack", 10, "exactly", (CONV,), ())
STEP = Loop("step", 1, "", (COPY, CONV), (ATTACK,))
PROGRAM = Loop("program", 1, "exactly", (COPY, COPY), (STEP, Loop("other", 2, "exactly", (COPY,), ())))


def estimate(root=PROGRAM, *, steps=True, memory=None, examples=128):
    return Estimate(
        name="x",
        target=TARGET,
        devices=2,
        examples=examples,
        memory=memory or Memory(1, 2, 3, 1),
        root=root,
        compile_seconds=0.0,
        steps=steps,
    )


@pytest.mark.parametrize(
    ("kernel", "seconds"),
    [
        (COPY, 50 / 100),
        (CONV, 2000 / 1000),
        (CONV._replace(rate="tf32"), 2000 / 500),
        (CONV._replace(rate="float32"), 2000 / 50),
        (CONV._replace(read=990.0), 1000 / 100),
    ],
)
def test_a_kernel_takes_the_longer_of_its_two(kernel, seconds):
    assert kernel_seconds(kernel, TARGET) == seconds


def test_a_step_is_its_rest_and_the_attacks_trips():
    assert own_seconds(STEP, TARGET) == 2.5
    assert loop_seconds(STEP, TARGET) == 2.5 + 10 * 2.0
    train = estimate()
    assert train.step is STEP
    assert train.step_seconds == 22.5
    assert train.outside_seconds == 2 * 0.5 + 2 * 0.5


def test_a_call_is_the_whole_program():
    call = estimate(steps=False)
    assert (call.step_seconds, call.outside_seconds) == (22.5 + 2.0, 0.0)
    assert not call.ends_early
    assert estimate(Loop("program", 1, "exactly", (), (ATTACK._replace(known="at most"),))).ends_early


@pytest.mark.parametrize(("steps", "chunk", "calls"), [(390, 50, 8), (400, 50, 8), (401, 50, 9), (3, 50, 1)])
def test_an_epoch_has_steps_and_calls(steps, chunk, calls):
    assert epoch_seconds(estimate(), steps, chunk) == steps * 22.5 + calls * 2.0


@pytest.mark.parametrize(("examples", "blocks"), [(1, 1), (128, 1), (129, 2), (0, 0)])
def test_blocks_are_whole(examples, blocks):
    assert block_seconds(estimate(steps=False), examples) == blocks * 24.5


def test_memory():
    memory = Memory(arguments=100.0, temporaries=50.0, outputs=40.0, aliased=30.0, code=5.0, beside=7.0)
    assert memory.peak == 100 + 50 + 40 - 30 + 5 + 7
    assert estimate(memory=memory).fits
    assert estimate(memory=memory._replace(temporaries=50.0 + 1000 - memory.peak)).fits
    assert not estimate(memory=memory._replace(temporaries=51.0 + 1000 - memory.peak)).fits


def test_kinds_are_listed_from_the_longest_on():
    rows = by_kind(Loop("x", 1, "exactly", (COPY, CONV, COPY), ()), TARGET)
    assert [(kind, len(kernels), seconds) for kind, kernels, seconds in rows] == [("conv", 1, 2.0), ("copy", 2, 1.0)]


def test_dollars():
    assert dollars(1800, 4, 3.0) == 6.0


@pytest.mark.parametrize(
    ("peaks", "limit", "found"),
    [
        ({100: 10.0, 200: 15.0}, 30.0, 500 // 64 * 64),  # 5 per 100
        ({100: 10.0, 200: 15.0, 400: 35.0}, 40.0, 450 // 64 * 64),  # of the two largest: 10 per 100
        ({100: 10.0, 200: 15.0}, 12.0, 128),  # back
        ({100: 10.0, 200: 15.0}, 1.0, 64),  # not even one unit
        ({100: 10.0, 200: 10.0}, 30.0, 400 // 64 * 64),  # it does not grow: on to twice as many
    ],
)
def test_the_next_batch_lies_on_the_line(peaks, limit, found):
    assert next_batch(peaks, limit, 64) == found
