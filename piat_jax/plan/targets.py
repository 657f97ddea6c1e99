"""The devices for which programs can be compiled without having one: their properties, and their form for XLA."""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from piat_jax.core.checks import InputError, check_count

GPU, TPU = "gpu", "tpu"
PACKAGES = {
    GPU: ("jax_plugins.xla_cuda12", "jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12", "plan-gpu"),
    TPU: ("libtpu", "libtpu", "plan-tpu"),
}
"""By platform: the module of XLA's compiler, its packages, and the extra that installs them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nvidia:
    """Properties of an NVIDIA GPU that XLA's compiler needs, besides memory and bandwidth."""

    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    lanes: int  # float32 units in each
    shared_memory: int  # bytes in each
    block_memory: int  # bytes of it that one block may use
    cache: int  # bytes of L2
    clock: float  # GHz
    matrix_clock: float  # GHz, sustained by the matrix units
    matrix_rate: int  # bfloat16 operations per clock of each of a core's four matrix units
    accelerated: bool = True  # has instructions that exist only in its generation, as from Hopper on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A device to compile for.

    Attributes:
      name: its name on the command line.
      title: its full name.
      platform: "gpu" or "tpu".
      memory: bytes of its memory.
      bandwidth: bytes per second between memory and chip.
      flops: dense operations per second: `bfloat16`, `tf32` (float32 at default precision), `float32` (at highest).
      nvidia: for a GPU, its further properties for XLA.
      axes: for a TPU, the number of axes of its topology.
    """

    name: str
    title: str
    platform: str
    memory: float
    bandwidth: float
    flops: Mapping[str, float]
    nvidia: Nvidia | None = None
    axes: int = 2


def _gpu(name: str, title: str, *, memory: int, bandwidth: float, nvidia: Nvidia) -> Target:
    matrix = 4 * nvidia.cores * nvidia.matrix_clock * 1e9 * nvidia.matrix_rate
    scalar = 2 * nvidia.cores * nvidia.lanes * nvidia.clock * 1e9
    flops = {"bfloat16": matrix, "tf32": matrix / 2, "float32": scalar}
    return Target(name=name, title=title, platform=GPU, memory=memory, bandwidth=bandwidth, flops=flops, nvidia=nvidia)


def _tpu(name: str, title: str, *, memory: float, bandwidth: float, flops: float, axes: int = 2) -> Target:
    # Its matrix unit multiplies bfloat16; float32 at highest precision is six products of parts.
    rates = {"bfloat16": flops, "tf32": flops, "float32": flops / 6}
    return Target(name=name, title=title, platform=TPU, memory=memory, bandwidth=bandwidth, flops=rates, axes=axes)


_HOPPER = Nvidia(
    capability=(9, 0),
    cores=132,
    lanes=128,
    shared_memory=233_472,
    block_memory=232_448,
    cache=52_428_800,
    clock=1.98,
    matrix_clock=1.8295201,
    matrix_rate=1024,
)
_AMPERE = Nvidia(
    capability=(8, 0),
    cores=108,
    lanes=64,
    shared_memory=167_936,
    block_memory=166_912,
    cache=41_943_040,
    clock=1.41,
    matrix_clock=1.41,
    matrix_rate=512,
    accelerated=False,
)
_BLACKWELL = Nvidia(
    capability=(10, 0),
    cores=148,
    lanes=128,
    shared_memory=233_472,
    block_memory=232_448,
    cache=132_644_864,
    clock=1.965,
    matrix_clock=1.8353101,
    matrix_rate=2048,
)
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _gpu("a100", "NVIDIA A100 SXM 80 GB", memory=85_100_068_864, bandwidth=2.03904e12, nvidia=_AMPERE),
        _gpu("a100-40", "NVIDIA A100 SXM 40 GB", memory=42_331_013_120, bandwidth=1.5552e12, nvidia=_AMPERE),
        _gpu("h100", "NVIDIA H100 SXM 80 GB", memory=84_942_979_072, bandwidth=3.35232e12, nvidia=_HOPPER),
        _gpu("h200", "NVIDIA H200 SXM 141 GB", memory=151_397_597_184, bandwidth=4.8e12, nvidia=_HOPPER),
        _gpu("b200", "NVIDIA B200 SXM 180 GB", memory=191_514_411_008, bandwidth=7.67232e12, nvidia=_BLACKWELL),
        _tpu("v5e", "TPU v5e", memory=16 * 2**30, bandwidth=8.19e11, flops=1.97e14),
        _tpu("v5p", "TPU v5p", memory=95 * 2**30, bandwidth=2.765e12, flops=4.59e14, axes=3),
        _tpu("v6e", "TPU v6e", memory=32 * 2**30, bandwidth=1.64e12, flops=9.18e14),
    )
}
"""All targets. For GPUs, the values are what drivers report, from XLA's own descriptions; rates are computed from units
and clocks and match NVIDIA's data sheets. For TPUs, they are from Google Cloud's system architecture pages."""


def find_target(text: str, devices: int = 0) -> tuple[Target, tuple[int, ...]]:
    """Find a target and its grid of devices.

    Args:
      text: a name of `TARGETS`, for a TPU also with its topology: "v5e:8x8".
      devices: number of devices; 0 = all of the topology, or one.

    Returns:
      The target and its grid, for a GPU `(devices,)`.

    Raises:
      InputError: the target is unknown, or does not have the topology.

    >>> find_target("v5e", 64)[1], find_target("h100", 8)[1]
    ((8, 8), (8,))
    >>> find_target("h101")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: target='h101' is unknown; there are a100, a100-40, h100, h200, b200, v5e, \
    v5p, v6e, a TPU's also as v5e:8x8
    """
    name, colon, shape = text.partition(":")
    if name not in TARGETS:
        raise InputError(f"target={name!r} is unknown; there are {', '.join(TARGETS)}, a TPU's also as v5e:8x8")
    target = TARGETS[name]
    check_count("devices", devices, 0)
    if target.platform == GPU:
        if colon:
            raise InputError(f"target={text!r}: a GPU has no topology; give --target={name} --devices=N")
        return target, (devices or 1,)
    if not colon:
        return target, grid_of(devices or 1, target.axes)
    parts = shape.split("x")
    if len(parts) != target.axes or not all(part.isdecimal() and int(part) for part in parts):
        example = "x".join("4" * target.axes)
        raise InputError(f"target={text!r}: give {target.axes} numbers, such as {name}:{example}")
    grid = tuple(map(int, parts))
    if devices and devices > math.prod(grid):
        raise InputError(f"devices={devices} is more than the {math.prod(grid)} of {text}; leave it out for all")
    return target, grid


def grid_of(devices: int, axes: int) -> tuple[int, ...]:
    """The most even grid of at least `devices` devices with powers of two as sides.

    >>> grid_of(8, 2), grid_of(16, 3), grid_of(5, 2)
    ((2, 4), (2, 2, 4), (2, 4))
    """
    bits = math.ceil(math.log2(devices))
    each, more = divmod(bits, axes)
    return tuple(sorted(2 ** (each + (axis < more)) for axis in range(axes)))


def describe_gpu(target: Target) -> str:
    """The GPU's description for XLA's compiler: a GpuTargetConfigProto in text form."""
    assert target.nvidia is not None
    chip, (major, minor) = target.nvidia, target.nvidia.capability
    feature = "ACCELERATED_FEATURES" if chip.accelerated else "NONE"
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "shared_memory_per_block": 49152,
        "shared_memory_per_block_optin": chip.block_memory,
        "shared_memory_per_core": chip.shared_memory,
        "core_count": chip.cores,
        "fpus_per_core": chip.lanes,
        "clock_rate_ghz": chip.clock,
        "l2_cache_size": chip.cache,
        "memory_bandwidth": int(target.bandwidth),
        "device_memory_size": int(target.memory),
        "device_address_bits": 64,
        "ecc_enabled": "true",
        "device_vendor": '"NVIDIA Corporation"',
        "name": f'"{target.title}"',
        "platform_version": f'"Compute Capability {major}.{minor}{"a" if chip.accelerated else ""}"',
        # The versions in XLA's own descriptions; cuDNN's version decides which of its fusions are used.
        "driver_version": '"13.0.0"',
        "runtime_version": '"12.8.0"',
        "compile_time_toolkit_version": '"12.8.0"',
        "dnn_version": '"9.10.0"',
        "cuda_compute_capability": f"{{ major: {major} minor: {minor} feature_extension: {feature} }}",
    }
    told = "\n".join(f"  {name}{'' if str(value).startswith('{') else ':'} {value}" for name, value in fields.items())
    return (
        f"gpu_device_info {{\n{told}\n}}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 10 patch: 0 }\n"
        f'device_description_str: "{target.title}"\n'
    )


def devices_of(target: Target, grid: Sequence[int], devices: int = 0) -> list[Any]:
    """The devices of an absent topology, for the shardings of compiled programs; the first `devices`, or all.

    Raises:
      InputError: the packages with XLA's compiler for them are not installed, or the topology does not exist.
    """
    module, packages, extra = PACKAGES[target.platform]
    if not _is_installed(module):
        raise InputError(
            f"target={target.name!r} needs XLA's compiler for it, which comes with {packages} in the version of jax; "
            f"pip install 'piat_jax[{extra}]'"
        )
    import jax
    from jax.experimental import topologies

    shape = "x".join(map(str, grid))
    try:
        if target.platform == GPU:
            made = topologies.get_topology_desc(
                topology_name=target.name,
                platform="cuda",
                target_config=describe_gpu(target),
                topology=f"1x1x{math.prod(grid)}",
            )
        else:
            # It would ask Google's cloud about its host, and block a present TPU for other processes.
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
            os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
            made = topologies.get_topology_desc(topology_name=f"{target.name}:{shape}", platform="tpu")
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"target={target.name!r} with {shape} devices cannot be compiled for: {reason}") from error
    return list(made.devices)[: devices or None]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
