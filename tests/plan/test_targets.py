"""The table of targets, and what is said where one cannot be compiled for."""

import re

import pytest

from piat_jax.core.checks import InputError
from piat_jax.plan import targets
from piat_jax.plan.targets import TARGETS, describe_gpu, devices_of, find_target, grid_of


@pytest.mark.parametrize(
    ("name", "bfloat16", "tf32", "float32"),
    # Of NVIDIA's data sheets, dense, in TFLOP/s.
    [("a100", 312, 156, 19.5), ("h100", 989.4, 494.7, 66.9), ("h200", 989.4, 494.7, 66.9), ("b200", 2250, 1125, 75)],
)
def test_the_rates_are_those_of_the_data_sheets(name, bfloat16, tf32, float32):
    found = TARGETS[name].flops
    assert found["bfloat16"] / 1e12 == pytest.approx(bfloat16, rel=0.02)
    assert found["tf32"] / 1e12 == pytest.approx(tf32, rel=0.02)
    assert found["float32"] / 1e12 == pytest.approx(float32, rel=0.02)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.nvidia])
def test_a_gpu_is_described_in_full(name):
    target = TARGETS[name]
    text = describe_gpu(target)
    assert text.count("{") == text.count("}")
    fields = dict(re.findall(r"^  (\w+): (\S+)$", text, re.MULTILINE))
    assert int(fields["memory_bandwidth"]) == target.bandwidth
    assert int(fields["device_memory_size"]) == target.memory
    assert int(fields["core_count"]) == target.nvidia.cores
    assert f"major: {target.nvidia.capability[0]} " in text
    assert ("ACCELERATED" in text) == (name[0] != "a")


@pytest.mark.parametrize(
    ("text", "devices", "grid"),
    [
        ("h100", 0, (1,)),
        ("h100", 8, (8,)),
        ("v5e", 0, (1, 1)),
        ("v5e", 6, (2, 4)),
        ("v5e:4x8", 0, (4, 8)),
        ("v5e:4x8", 16, (4, 8)),
        ("v5p", 8, (2, 2, 2)),
        ("v5p:2x2x1", 0, (2, 2, 1)),
    ],
)
def test_grids(text, devices, grid):
    target, found = find_target(text, devices)
    assert (target.name, found) == (text.partition(":")[0], grid)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 7, 16, 64, 100, 256])
def test_a_grid_has_room_and_no_more_than_twice_as_much(devices, axes):
    grid = grid_of(devices, axes)
    size = 1
    for side in grid:
        size *= side
    assert len(grid) == axes
    assert devices <= size < 2 * devices
    assert max(grid) <= 2 * min(grid)


@pytest.mark.parametrize(
    ("text", "devices", "said"),
    [
        ("h101", 0, r"target='h101' is unknown; there are a100, a100-40, h100, h200, b200, v5e, v5p, v6e"),
        ("", 0, "target='' is unknown"),
        ("h100:2x2", 0, "a GPU has no topology; give --target=h100 --devices=N"),
        ("v5e:8", 0, "give 2 numbers, such as v5e:4x4"),
        ("v5e:8x", 0, "give 2 numbers"),
        ("v5e:0x4", 0, "give 2 numbers"),
        ("v5p:2x2", 0, "give 3 numbers, such as v5p:4x4x4"),
        ("v5e:2x2", 5, "devices=5 is more than the 4 of v5e:2x2"),
        ("h100", -1, "devices=-1 must be at least 0"),
    ],
)
def test_what_is_not_there_is_refused(text, devices, said):
    with pytest.raises(InputError, match=re.escape(said)):
        find_target(text, devices)


@pytest.mark.parametrize(
    ("name", "packages"), [("h100", "jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12"), ("v5e", "libtpu")]
)
def test_without_its_compiler_the_packages_are_named(name, packages, monkeypatch):
    monkeypatch.setattr(targets, "_is_installed", lambda module: False)
    with pytest.raises(InputError, match=rf"comes with {packages} .* pip install 'piat_jax\[plan-[gt]pu\]'"):
        devices_of(*find_target(name))


def test_a_module_that_is_not_there_is_not_installed():
    assert targets._is_installed("json")
    assert not targets._is_installed("jax_plugins_of_nobody.xla_cuda12")
