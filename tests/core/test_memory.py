import os
import types

import jax
import numpy as np
import pytest

from piat_jax.core import memory


def fails():
    raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")


@pytest.mark.parametrize(
    ("platform", "stats", "expected"),
    [
        ("gpu", lambda: {"bytes_limit": 7, "bytes_in_use": 3}, 7),
        ("tpu", lambda: {}, None),
        ("gpu", lambda: None, None),
        ("gpu", fails, None),
        ("cpu", lambda: {"bytes_limit": 7}, 11),
    ],
)
def test_a_device_says_how_much_it_has_or_nothing(platform, stats, expected, monkeypatch):
    device = types.SimpleNamespace(platform=platform, memory_stats=stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(memory, "host_memory", lambda: 11)
    assert memory.device_memory() == expected


def test_this_machine_has_whole_pages_of_memory(monkeypatch):
    there = memory.host_memory()
    assert there > 1 << 28
    assert there % os.sysconf("SC_PAGE_SIZE") == 0
    monkeypatch.delattr(os, "sysconf")
    assert memory.host_memory() is None


@pytest.mark.parametrize(
    ("platform", "peaks", "expected"),
    [("gpu", [5, 9, None], 9), ("tpu", [None, None], None), ("cpu", [5, 5], 13)],
)
def test_the_highest_peak_of_the_devices_is_told(platform, peaks, expected, monkeypatch):
    devices = [
        types.SimpleNamespace(platform=platform, memory_stats=lambda peak=peak: peak and {"peak_bytes_in_use": peak})
        for peak in peaks
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(memory, "_peak_of_process", lambda: 13)
    assert memory.peak_memory() == expected


def test_a_process_that_took_more_memory_has_a_higher_peak(monkeypatch):
    before = memory.peak_memory()
    taken = np.ones(before // 8 + (1 << 25))  # as much again as ever, and 256 MiB more
    assert memory.peak_memory() - before > 1 << 27
    del taken
    assert memory.peak_memory() > before
    monkeypatch.setattr(memory, "resource", None)
    assert memory.peak_memory() is None
