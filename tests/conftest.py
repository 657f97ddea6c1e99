"""Strict JAX for every test: no silent broadcasting between ranks, warnings are errors (pyproject.toml)."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
