"""Time of PGD-10 on a small convolutional network inside a compiled loop: native convolutions against loop-safe ones.

`python -m experiments.throughput.conv_in_loop` prints one table; the measured rows are in conv_in_loop.md.
"""

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from experiments import markdown
from piat_jax.attacks import pgd
from piat_jax.cli import errors
from piat_jax.core.types import Array
from piat_jax.programs.platform import compiling_for

BATCH, SIZE, WIDTHS, CLASSES, ROUNDS = 16, 16, (3, 32, 32, 64), 10, 3

PROGRAMS = {"native": "tpu", "loop-safe": "cpu"}
"""For which platform a program is written; all are run here."""


def logits(kernels: list[Array], images: Array) -> Array:
    """Three 3x3 convolutions with ReLU, the last of stride 2, mean pooling; the last kernel is the linear layer."""
    for index, kernel in enumerate(kernels[:-1]):
        stride = 2 if index == len(kernels) - 2 else 1
        numbers = ("NHWC", "HWIO", "NHWC")
        images = jax.lax.conv_general_dilated(
            images, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=numbers
        )
        images = jax.nn.relu(images)
    return images.mean((1, 2)) @ kernels[-1]


def compiled_attack(
    target: str, kernels: list[Array], images: Array, labels: Array
) -> tuple[Callable[[], Array], float]:
    """PGD-10, compiled; and the seconds that took."""

    @jax.jit
    def attack(kernels: list[Array], images: Array, labels: Array) -> Array:
        return pgd(functools.partial(logits, kernels), images, labels, key=jax.random.key(0), steps=10)

    start = time.perf_counter()
    with compiling_for(target):
        executable = attack.lower(kernels, images, labels).compile()
    seconds = time.perf_counter() - start
    return lambda: executable(kernels, images, labels), seconds


def main(argv: Sequence[str]) -> None:
    """Measure A B A B and print the medians."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    keys = jax.random.split(jax.random.key(0), len(WIDTHS) + 1)
    shapes = [*((3, 3, a, b) for a, b in itertools.pairwise(WIDTHS)), (WIDTHS[-1], CLASSES)]
    kernels = [jax.random.normal(k, s) * (2 / jnp.prod(jnp.array(s[:-1]))) ** 0.5 for k, s in zip(keys, shapes)]
    images = jax.random.uniform(keys[-1], (BATCH, SIZE, SIZE, WIDTHS[0]))
    labels = jnp.arange(BATCH) % CLASSES

    runs = {name: compiled_attack(target, kernels, images, labels) for name, target in PROGRAMS.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run, _ in runs.values():
        jax.block_until_ready(run())
    for _ in range(2):  # A B A B
        for name, (run, _) in runs.items():
            for _ in range(ROUNDS):
                start = time.perf_counter()
                jax.block_until_ready(run())
                times[name].append(time.perf_counter() - start)

    rows = []
    for name, (_, seconds) in runs.items():
        ms = [1000 * t for t in times[name]]
        spread = (f"{each:.0f}" for each in (statistics.median(ms), min(ms), max(ms)))
        rows.append([jax.__version__, jax.devices()[0].device_kind, name, f"{seconds:.1f}", *spread, len(ms)])
    heads = ("jax", "device", "convolution", "compile s", "PGD-10 ms (median)", "min", "max", "n")
    print(markdown.table(heads, rows, words=3))


if __name__ == "__main__":
    errors.leave(errors.run(main))
