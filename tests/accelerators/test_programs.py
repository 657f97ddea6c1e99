"""A run's programs, compiled for GPUs and TPUs that are not here: `make accelerators`.

What XLA makes of them for these devices is looked at: arithmetic, copies, collectives, loops, memory. Nothing runs.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from piat_jax.attacks.ascent import round_towards
from piat_jax.core.forward import forward_flop
from piat_jax.evaluation import AutoAttack
from piat_jax.experiment import config
from piat_jax.plan import programs
from piat_jax.plan.compiled import estimate
from piat_jax.plan.hlo import parse
from piat_jax.plan.kernels import read_loops
from piat_jax.plan.targets import devices_of, find_target

PLACES = {"h100": 1, "h100 x 8": 8, "v5e": 1, "v5e x 64": 64}
BATCH, STEPS = 128, 3
ATTACKS = {"apgd-ce": (1, 4), "apgd-t": (1, 4), "fab-t": (3,), "square": (6,)}
"""Of AutoAttack with 3 steps or 5 queries: how often its loops are gone through at most, from the outermost in."""
SMALL = {
    "model.name": "small_resnet",
    "model.options.width": 16,
    "model.options.stage_sizes": (1,),
    "model.options.stem_stride": 2,
    "model.dtype": "bfloat16",
    "batch_size": BATCH,
    "attack.steps": STEPS,
    "evaluation.batch_size": BATCH,
}


@functools.cache
def place(name):
    target, grid = find_target(name.split(" ")[0], PLACES[name])
    return target, devices_of(target, grid, PLACES[name])


def small(**more):
    fields = {**SMALL, **{name.replace("__", "."): value for name, value in more.items()}}
    # The fields of small_resnet are not those of the config's network.
    return config.load("fashion_mnist:nmse+piat", {**fields, "dataset.name": "cifar10"})


def training(name, experiment):
    target, devices = place(name)
    sizes = programs.sizes_of(experiment)
    return estimate(programs.training(experiment, sizes, devices, target.platform), target), sizes


def inside(loop):
    """The kernels of all loops in a loop."""
    return [kernel for inner in loop.loops for each in inner.walk() for kernel in each.kernels]


def attack_of(step):
    """The loop in a loop that convolves."""
    (loop,) = (each for each in step.loops if any(kernel.is_convolution for kernel in each.kernels))
    return loop


def copied(kernels):
    """Bytes that kernels move only to bring arrays into another order."""
    return sum(kernel.moved for kernel in kernels if kernel.is_layout_copy)


def near(flops, expected):
    """Whether a program does about what it has to.

    A little is saved at the first layer. With two images a chip, XLA:TPU computes half as much again.
    """
    return 0.8 * expected < flops < 1.6 * expected


def collectives(kernels):
    return {kernel.kind for kernel in kernels if kernel.sent}


@pytest.mark.parametrize("name", PLACES)
def test_training(name):
    experiment = small()
    found, sizes = training(name, experiment)
    step, attack = found.step, attack_of(found.step)
    assert found.devices == PLACES[name]
    assert (attack.trips, attack.known) == (STEPS, "exactly")
    convolutions = [kernel for kernel in (*step.kernels, *attack.kernels) if kernel.is_convolution]
    assert len(convolutions) > 15
    assert {kernel.rate for kernel in convolutions} == {"bfloat16"}
    # Forward and gradient by images of the attack; forward, gradient by images and weights of clean and attacked ones.
    forward = BATCH / found.devices * forward_flop(experiment.build_model(sizes.classes), sizes.image_shape)
    assert near(attack.total(lambda kernel: kernel.flops), 2 * forward)
    assert near(sum(kernel.flops for kernel in step.kernels), 2 * 3 * forward)
    assert copied(inside(found.root)) == 0
    assert collectives(inside(found.root)) == (set() if found.devices == 1 else {"all-reduce"})
    assert collectives(attack.kernels) == set()
    assert found.fits
    weights = programs.count(programs.training(experiment, sizes, place(name)[1], "gpu").arguments[0].params)
    images = 3072 * (sizes.train + sizes.monitor)
    assert found.memory.arguments + found.memory.beside > images + 4 * 3 * weights  # weights, momentum and anchor


@pytest.mark.parametrize("name", [name for name, devices in PLACES.items() if devices > 1])
def test_a_state_in_parts_is_gathered_once_a_step(name):
    target, devices = place(name)
    experiment = small(model__options__width=64, fsdp=True)
    sizes = programs.sizes_of(experiment)
    whole = programs.training(small(model__options__width=64), sizes, devices, target.platform)
    found, _ = training(name, experiment)
    assert collectives(attack_of(found.step).kernels) == set()
    assert collectives(inside(found.root)) <= {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}
    # For TPUs, XLA gathers arrays as small as these by all-reduce.
    assert "all-gather" in collectives(found.step.kernels) or target.platform == "tpu"
    assert found.memory.arguments < programs.bytes_on_a_device(whole.arguments)
    assert found.memory.beside < whole.beside


@pytest.mark.parametrize("name", PLACES)
def test_evaluation(name):
    target, devices = place(name)
    experiment = small()
    sizes = programs.sizes_of(experiment)
    found = estimate(programs.evaluation(experiment, sizes, devices, target.platform, "pgd4", sizes.monitor), target)
    attack = attack_of(found.root)
    assert (attack.trips, attack.known) == (4, "exactly")
    assert {kernel.rate for kernel in attack.kernels if kernel.is_convolution} == {"float32"}
    assert copied(inside(found.root)) == 0
    assert collectives([*found.root.kernels, *inside(found.root)]) == set()
    forward = found.examples / found.devices * forward_flop(experiment.build_model(sizes.classes), sizes.image_shape)
    assert near(attack.total(lambda kernel: kernel.flops), 2 * forward)


@pytest.mark.parametrize("name", ["h100", "v5e x 64"])  # devices share nothing, so one of a kind is enough
@pytest.mark.parametrize("attack", ATTACKS)
def test_autoattack(name, attack):
    target, devices = place(name)
    experiment = small()
    sizes = programs.sizes_of(experiment)
    settings = AutoAttack(attacks=(attack,), steps=3, queries=5, block_size=BATCH)
    (member,) = settings.members()
    found = estimate(programs.autoattack(experiment, sizes, devices, target.platform, member, settings), target)
    loop, trips = found.root, []
    while any(kernel.is_convolution for kernel in inside(loop)):
        loop = max(loop.loops, key=lambda each: each.total(lambda kernel: kernel.flops))
        trips.append(loop.trips)
        assert loop.known == "at most"
    assert tuple(trips) == ATTACKS[attack]
    assert {kernel.rate for kernel in inside(found.root) if kernel.is_convolution} == {"float32"}
    assert copied(inside(found.root)) == 0
    assert collectives([*found.root.kernels, *inside(found.root)]) == set()


def test_bytes_and_operations_are_about_those_that_xla_counts():
    target, devices = place("v5e")
    experiment = small()
    sizes = programs.sizes_of(experiment)
    compiled = (
        programs.evaluation(experiment, sizes, devices, target.platform, "clean", sizes.monitor).lower().compile()
    )
    counted = compiled.cost_analysis()
    # XLA counts each loop once, operations of all kinds, and bytes in whichever memory.
    loops = list(read_loops(parse(re.sub(r"S\(\d+\)", "", compiled.as_text()))).walk())
    ours = [kernel for loop in loops for kernel in loop.kernels]
    assert sum(kernel.moved for kernel in ours) == pytest.approx(counted["bytes accessed"], rel=0.25)
    assert 0.6 < sum(kernel.flops for kernel in ours) / counted["flops"] < 1


def test_resnet_18_on_one_h100():
    found, _ = training("h100", config.load("cifar10_resnet18:nmse", {"model.dtype": "bfloat16"}))
    state, images = 89.5e6, 50_000 * 3073
    assert found.memory.arguments == pytest.approx(state + images, rel=0.02)
    assert found.memory.temporaries < 700e6
    attack = attack_of(found.step)
    assert attack.trips == 10
    # Convolution, bias, residual and ReLU are one kernel each.
    assert [kernel.kind for kernel in attack.kernels].count("convBiasActivationForward") == 20
    assert sum(1 for kernel in attack.kernels) < 80
    # The kernels of three 1x1 convolutions, which are brought into cuDNN's order at each step of the attack.
    assert copied(inside(found.root)) < 1e6


@pytest.mark.parametrize("name", config.names())
def test_every_config_is_traced_for_both(name):
    experiment = config.load(name, {"model.dtype": "bfloat16"})
    sizes = programs.sizes_of(experiment)
    for where in ("h100 x 8", "v5e"):
        target, devices = place(where)
        train = programs.training(experiment, sizes, devices, target.platform)
        assert "stablehlo.while" in train.lower().as_text()


@pytest.mark.parametrize("name", ["h100", "v5e"])
def test_a_rounding_to_few_bits_is_not_taken_for_none(name):
    """Else pixels of bfloat16 images leave the ball: a compiler may keep more bits than it is asked for."""
    _, devices = place(name)
    here = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec())
    program = jax.jit(lambda x, clean: round_towards(x, clean, jnp.bfloat16), in_shardings=here, out_shardings=here)
    pixels = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    assert "reduce-precision" in program.lower(pixels, pixels).compile().as_text()
