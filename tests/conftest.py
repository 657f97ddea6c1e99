"""Strict JAX for every test: no silent broadcasting between ranks, warnings are errors (pyproject.toml)."""

import os

# Tests spend their time compiling; without LLVM's optimizations that takes a quarter less. Read when JAX begins.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
