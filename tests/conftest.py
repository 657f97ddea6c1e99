"""Strict JAX for every test: no silent broadcasting between ranks, warnings are errors (pyproject.toml)."""

import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Read when JAX begins. On a CPU, also where there is a GPU; `make gpu` names it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests spend their time compiling; without LLVM's optimizations, or a search for kernels, that takes a quarter less.
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
    # jax 0.10 still has XLA's older emitter, which compiles three times as fast. `make rounding` has the one of users.
    if version("jax").startswith("0.10.") and not os.environ.get("USERS_EMITTER"):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
else:  # several processes share a GPU, and numbers are compared to more digits than TF32 has
    os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 {os.environ.get('XLA_FLAGS', '')}"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# What was compiled once is read the next time, by the commands that tests start too: a second run takes half the time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
import jax
import pytest

from tests import slow

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
# What is kept of files that tests make goes with the tests.
_kept = tempfile.TemporaryDirectory(prefix="piat-tests-")
os.environ["PIAT_CACHE_DIR"] = _kept.name

ACCELERATORS = Path(__file__).parent / "accelerators"
collect_ignore = [str(ACCELERATORS)]


MOST_MAPS = 40_000
"""Of memory; a process has at most 65,530 on Linux, a compiled program takes some, and beyond that XLA crashes."""
_done = 0


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(config, items):
    """Mark what tests/slow.txt lists, and what compares more exactly under users' emitter (tests/processors.py)."""
    lines = slow.read(slow.LIST.read_text())
    for item in items:
        if {"same_bits", "OLDER_EMITTER"} & slow.names_in(item):
            item.add_marker("rounding")
        if slow.is_slow(item.nodeid, lines):
            item.add_marker("slow")
    if config.args_source == config.ArgsSource.TESTPATHS:  # all tests, of which -k and -m choose afterwards
        ids = [item.nodeid for item in items]
        config.stash[slow.STALE] = [name for name, _ in lines if not any(slow.names(name, each) for each in ids)]


def pytest_runtest_teardown(nextitem):
    """Drop compiled programs where there is little room for more; every 25 tests, as counting takes a moment."""
    global _done
    _done += 1
    if sys.platform == "linux" and _done % 25 == 0:
        with open("/proc/self/maps", "rb") as maps:
            many = sum(1 for _ in maps) > MOST_MAPS
        if many:
            jax.clear_caches()


def pytest_terminal_summary(terminalreporter, config):
    """Say that tests are left out, where the whole folder was asked for."""
    if any(Path(config.invocation_params.dir, part) in ACCELERATORS.parents for part in config.args):
        terminalreporter.write_line("left to `make accelerators`, as it needs packages of its own: tests/accelerators")
