"""Rewrites of traced programs before compilation, by platform.

Networks, attacks and methods are written once, in plain JAX. The rewrites that a compiler needs to be fast are applied
here, to the traced program: `loop_safe` for the body of a loop, `frozen` for a network with fixed weights.
"""

from piat_jax.programs.frozen import frozen
from piat_jax.programs.loops import loop_safe

__all__ = ["frozen", "loop_safe"]
