"""What is done to a traced program before it is compiled, by the platform it is for.

Networks, attacks and methods are written once, in plain JAX. What a compiler needs to be fast is done here, to the
program they are traced to: `loop_safe` for the body of a loop, `frozen` for a network whose weights stay.
"""

from piat_jax.programs.frozen import frozen
from piat_jax.programs.loops import loop_safe

__all__ = ["frozen", "loop_safe"]
