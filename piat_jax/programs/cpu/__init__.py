"""All that exists because XLA's compiler for CPUs is slow where it need not be."""

from piat_jax.programs.cpu.convolutions import rewritten as _convolution
from piat_jax.programs.cpu.sums import rewritten as _sum

RULES = {"conv_general_dilated": _convolution, "reduce_sum": _sum}
"""By the name of a primitive, what stands in its place (programs/jaxprs.py)."""
