"""Workarounds for cases in which XLA's compiler for CPUs is needlessly slow."""

from piat_jax.programs.cpu.convolutions import rewritten as _convolution
from piat_jax.programs.cpu.sums import rewritten as _sum

RULES = {"conv_general_dilated": _convolution, "reduce_sum": _sum}
"""Rewrite rules by primitive name (programs/jaxprs.py)."""
