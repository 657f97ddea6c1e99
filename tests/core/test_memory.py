import os
import types

import jax
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
