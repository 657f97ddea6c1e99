"""Sums over batch and pixels, one axis at a time."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax import lax

from piat_jax.core.types import Array
from piat_jax.programs.jaxprs import Replacement, is_placed


@dataclasses.dataclass(frozen=True)
class SumByAxis:
    """The sum over several axes, one at a time, the last axis first, `[...]` to `[...]`.

    From jax 0.11 on, XLA turns a sum over several axes into a tree of windows, which takes 15 times as long. The
    barrier keeps XLA from merging the sums again (experiments/results/throughput/NOTES.md).
    """

    axes: tuple[int, ...]

    def __call__(self, x: Array) -> Array:
        """`x` summed over these axes."""
        for axis in sorted(self.axes, reverse=True):
            x = lax.optimization_barrier(lax.reduce_sum(x, (axis,)))
        return x


def rewritten(equation: Any, definitions: Mapping[Any, Any]) -> Replacement | None:
    """The rule for `reduce_sum`: sums over several axes except the last, the channels."""
    del definitions
    axes, (x,) = equation.params["axes"], equation.invars
    dimensions = len(x.aval.shape)
    if len(axes) < 2 or dimensions < 3 or dimensions - 1 in axes or is_placed(equation):
        return None
    return Replacement(SumByAxis(tuple(axes)), (x,))
