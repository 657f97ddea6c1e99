"""Arrays that are too large for memory: where they are, and that nothing of them is left."""

import os
import shutil
import subprocess
import sys
import tempfile
import types

import numpy as np
import pytest

from piat_jax.core import scratch as module
from piat_jax.core.checks import InputError
from piat_jax.core.scratch import scratch

HOLDS = """
import os, sys
import numpy as np
from piat_jax.core import scratch
scratch.IN_MEMORY_BYTES = 100
kept = scratch.scratch("images", (1000,), np.uint8)
kept[:] = 1
print(len(os.listdir(os.environ["TMPDIR"])), type(kept).__name__, flush=True)
sys.stdin.read()
"""


def test_small_ones_are_in_memory_and_large_ones_mapped(monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 400)
    small, large = scratch("images", (10, 10), np.float32), scratch("images", (10, 11), np.float32)
    assert (type(small), type(large)) == (np.ndarray, np.memmap)
    for array in (small, large):
        assert not array.any()
        array[3] = 7
        assert array.sum() == 7 * array.shape[1]


def test_nothing_is_left_of_a_process_that_is_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().split() == ["0", "memmap"]
    finally:
        process.kill()
        process.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 400)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    free = types.SimpleNamespace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(InputError, match=r"^the images take 2.0 MB, but .* has 1.0 MB free; give a folder .*TMPDIR"):
        scratch("the images", (2, 10**6), np.uint8)
    free.free = 10**18  # as others write meanwhile, or behind a quota
    with pytest.raises(InputError, match=r"^the images take \d+.0 TB, but .* has .* free; give"):
        scratch("the images", (10**6, 10**8), np.uint8)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"absent cannot hold a temporary file \(No such file.*TMPDIR"):
        scratch("the images", (2, 10**6), np.uint8)
