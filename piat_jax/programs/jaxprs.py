"""Looking into traced programs."""

from collections.abc import Iterator
from typing import Any


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The programs inside one equation of a jaxpr: of loops, branches, jitted and custom functions."""
    for value in equation.params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner
