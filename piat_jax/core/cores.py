"""The cores of a CPU, and their use as devices."""

import contextlib
import os

import jax


def count_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_one_device_a_core() -> None:
    """Make every CPU core a device, unless the number of devices was set or JAX has started; no effect on a GPU.

    A second thread hardly speeds up a small convolution in XLA. AutoAttack, whose rows are independent, takes two
    thirds of the time on two single-core devices (experiments/results/autoattack).
    """
    if jax.config.jax_num_cpu_devices > 0:  # type: ignore[attr-defined]
        return
    with contextlib.suppress(RuntimeError):  # called from Python, after JAX was used
        jax.config.update("jax_num_cpu_devices", count_cores())
