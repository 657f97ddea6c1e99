import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_run.py")
# What ends the run, and how: three steps an epoch are two chunks, a block of 8 of 20 images comes six times.
ENDS = [
    ("chunk 8", -signal.SIGKILL),
    ("block 9", -signal.SIGKILL),
    ("save 1", -signal.SIGKILL),
    ("compare 0", 0),
]


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path):
    # Compiled once for all of them.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, **cache, "PYTHONPATH": "."}
    for event, code in ENDS:
        command = [sys.executable, str(SCRIPT), str(tmp_path / "run"), *event.split()]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        if ended.returncode != code:
            pytest.fail(f"{event}: exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    assert "the same" in ended.stdout
