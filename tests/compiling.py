"""How XLA compiles in tests, which spend their time on it."""

import os
from importlib.metadata import version


def xla_flags() -> str:
    """Flags for XLA_FLAGS, before those that are set there, which win.

    Without LLVM's optimizations compiling takes a quarter less, and with the older of jax 0.10's two emitters half as
    long. `make rounding`, which limits the instructions, keeps the emitters that users have.
    """
    given = os.environ.get("XLA_FLAGS", "")
    faster = "--xla_backend_optimization_level=0"
    # XLA ends a process whose flags it does not know, and jax 0.12 does not know this one.
    if version("jaxlib").startswith("0.10.") and "xla_cpu_max_isa" not in given:
        faster += " --xla_cpu_use_fusion_emitters=false"
    return f"{faster} {given}"
