"""The cores of a CPU, and how work is laid over them."""

import contextlib
import os

import jax


def count_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_one_device_a_core() -> None:
    """Make every core a device of its own, unless the number was set or JAX has begun already; no effect on a GPU.

    XLA gains next to nothing from a second thread in a small convolution, so AutoAttack, whose rows do not need each
    other, takes two thirds of the time on two devices of a core each (experiments/results/autoattack).
    """
    if jax.config.jax_num_cpu_devices > 0:  # type: ignore[attr-defined]
        return
    with contextlib.suppress(RuntimeError):  # called from Python, after JAX was used
        jax.config.update("jax_num_cpu_devices", count_cores())
