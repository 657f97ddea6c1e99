"""Our side of the benchmark: the library's compiled training loop, evaluation and AutoAttack blocks."""

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax import models
from piat_jax.attacks import bind, pgd
from piat_jax.attacks.ensemble import ensemble
from piat_jax.benchmark.interleaved import Case, Work
from piat_jax.core.cores import count_cores, use_one_device_a_core
from piat_jax.core.forward import forward_flop, make_logits_fn
from piat_jax.core.pixels import to_float
from piat_jax.core.sharding import data_mesh
from piat_jax.core.types import Variables
from piat_jax.data import Split
from piat_jax.evaluation import correct_under_attack
from piat_jax.evaluation.blocks import Blocks, Rows
from piat_jax.experiment.provenance import describe_run
from piat_jax.objectives import NMSE
from piat_jax.training import Examples, Recipe, init_state, sgd, train_steps

CPU = "cpu: "
"""Prefix of a CPU's device name."""
CLASSES = 10
EPS, STEP_SIZE = 8 / 255, 2 / 255
MU, MOMENTUM, WEIGHT_DECAY = 5.0, 0.9, 3.5e-3
LEARNING_RATE = 1e-4  # images and labels are noise: there is nothing to learn, and training must not diverge
UNREACHED = 1e-6
"""AutoAttack's radius here: no attack succeeds, so every row takes every step and both sides do the same work."""


class Network(NamedTuple):
    """A model and its images for the measurement."""

    name: str
    image_shape: tuple[int, int, int]  # height, width, channels
    options: dict[str, Any]


NETWORKS = {
    "resnet18": Network("resnet18", (32, 32, 3), {}),
    "wrn_32_10": Network("wrn_32_10", (32, 32, 3), {}),
    "small": Network("small_resnet", (28, 28, 1), {"width": 8, "stage_sizes": (1, 1, 1), "stem_stride": 2}),
}


def prepare(case: Case) -> Work:
    """Prepare a case as a user of this library would run it."""
    # The other side needs memory on the same GPU. JAX reads this when it first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    run, units, about = {"train": _train, "evaluate": _evaluate, "matmul": _matmul}.get(case.what, _attack)(case)
    run_about = describe_run()
    about |= {"versions": run_about["versions"], "commit": run_about["commit"], "started": run_about["started"]}
    return Work(run, units, _device_memory, {**about, "device": _device()})


def draw_data(case: Case, batches: int) -> Split:
    """Noise as uint8 images, and labels, for `batches` batches."""
    rng, count = np.random.default_rng(0), batches * case.batch
    images = rng.integers(0, 256, (count, *NETWORKS[case.model].image_shape), np.uint8)
    return Split(images, rng.integers(0, CLASSES, count).astype(np.int32))


def evaluated_batches(on_cpu: bool) -> int:
    """The number of batches in one evaluation, with one wait: on a CPU one, as a batch may take minutes there."""
    return 1 if on_cpu else 8


def _train(case: Case) -> tuple[Callable[[int], None], float, dict[str, Any]]:
    """Training steps in one compiled loop."""
    net = _model(case)
    data = draw_data(case, 4)
    examples = Examples(jnp.asarray(data.images), jnp.asarray(data.labels))
    recipe = Recipe(sgd(LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY), batch_size=case.batch)
    attack = bind(pgd, eps=EPS, step_size=STEP_SIZE, steps=case.steps)
    objective = jax.device_put(jax.tree.map(jnp.asarray, NMSE(model=net, attack=attack, mu=MU)))
    key = jax.random.key(0)
    state = init_state(objective, recipe.optimizer, to_float(examples.images[:1]), key=key)

    def run(times: int) -> None:
        nonlocal state
        numbers = map(jnp.int32, (0, times, 1))
        state, sums = train_steps(state, objective, examples, key, *numbers, recipe=recipe)
        if int(sums.steps) < times:
            raise RuntimeError(f"the loss was not finite after {int(sums.steps)} of {times} steps")

    return run, case.batch, {"forward_flops": forward_flop(_model(case), NETWORKS[case.model].image_shape)}


def _evaluate(case: Case) -> tuple[Callable[[int], None], float, dict[str, Any]]:
    """Accuracy under PGD."""
    use_one_device_a_core()
    mesh = data_mesh(jax.device_count())
    logits_fn = make_logits_fn(*_initialised(case))
    images, labels = map(jnp.asarray, draw_data(case, evaluated_batches(jax.default_backend() == "cpu")))
    attack = bind(pgd, eps=EPS, step_size=STEP_SIZE, steps=case.steps)
    key = jax.random.key(0)

    def run(times: int) -> None:
        with jax.default_matmul_precision(_precision(case)):
            for _ in range(times):
                correct_under_attack(logits_fn, images, labels, attack, key=key, batch_size=case.batch, mesh=mesh)

    return run, len(labels), {"forward_flops": forward_flop(_model(case), NETWORKS[case.model].image_shape)}


def _attack(case: Case) -> tuple[Callable[[int], None], float, dict[str, Any]]:
    """One run of one of AutoAttack's attacks on one block; a targeted attack aims at the second highest logit."""
    use_one_device_a_core()
    (member,) = ensemble(attacks=(case.what,), steps=case.steps, queries=case.steps)
    blocks = Blocks(make_logits_fn(*_initialised(case)), case.batch, jax.local_devices(), _precision(case) or "default")
    pixels = np.array(to_float(jnp.asarray(draw_data(case, 1).images)))
    order = blocks.logits(pixels).argsort(axis=1)
    targets = order[:, -2].astype(np.int32) if member.targets else None
    indices = np.arange(case.batch, dtype=np.uint32)
    rows = Rows(pixels, order[:, -1].astype(np.int32), indices, np.ones(case.batch, bool), targets)
    key = jax.random.key(0, impl="threefry2x32")
    whole = (2 if case.what == "fab-t" else 1) * case.steps + 1

    def run(times: int) -> None:
        for _ in range(times):
            queries = blocks.attack(member.attack, rows, key, UNREACHED, "linf").queries
            if queries.min() < whole:
                raise RuntimeError(f"rows of {case.what} ended after {queries.min()} of {whole} forwards")

    return run, case.batch, {"forward_flops": forward_flop(_model(case), NETWORKS[case.model].image_shape)}


def _matmul(case: Case) -> tuple[Callable[[int], None], float, dict[str, Any]]:
    """A product of two square matrices."""
    size = matrix_size(jax.default_backend() == "cpu")
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), models.DTYPES[case.dtype])
    product = jax.jit(jnp.matmul)

    def run(times: int) -> None:
        result = left
        for _ in range(times):
            result = product(left, right)
        jax.block_until_ready(result)

    return run, 2.0 * size**3, {}


def matrix_size(on_cpu: bool) -> int:
    """The side of the matrices for the timed product: large enough to fill the device."""
    return 2048 if on_cpu else 8192


def _model(case: Case) -> models.LinenModel:
    network = NETWORKS[case.model]
    return models.create(network.name, num_classes=CLASSES, dtype=case.dtype, **network.options)


def _initialised(case: Case) -> tuple[models.LinenModel, Variables]:
    net = _model(case)
    return net, net.init(jax.random.key(0), jnp.zeros((1, *NETWORKS[case.model].image_shape)))


def _precision(case: Case) -> str | None:
    """The precision of matrix products in evaluation: piat-evaluate's, unless a lower one is requested."""
    return "highest" if case.dtype == "float32" else None


def _device_memory() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _device() -> str:
    """The device's name; for a CPU, the processor's name and the number of cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    about = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", about.read_text()) if about.exists() else []
    return f"{CPU}{(names or [platform.machine()])[0]}, {count_cores()} cores"
