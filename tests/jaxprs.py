"""A look into traced programs."""

import jax


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(parameter):
                yield from equations(getattr(parameter, "jaxpr", parameter))


def _is_program(parameter):
    return hasattr(parameter, "eqns")
