"""A look into traced programs."""

from piat_jax.programs.jaxprs import inner_jaxprs


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)
