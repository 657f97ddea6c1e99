"""Inspecting traced programs, and replacing their equations."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

TRANSPARENT = frozenset(
    {"jit", "pjit", "while", "scan", "cond", "closed_call", "remat2", "checkpoint", "shard_map"}
    | {"custom_jvp_call", "custom_vjp_call"}
)
"""Equations that compute exactly their inner programs. For a custom derivative this is the function without its
derivative, which is what runs after differentiation; a derivative that was taken consists of ordinary equations."""


@dataclasses.dataclass(frozen=True)
class Replacement:
    """A function of `inputs` that computes the same as an equation; equal functions share one trace."""

    fn: Callable[..., Any]  # hashable
    inputs: tuple[Any, ...]


Rule = Callable[[JaxprEqn, Mapping[Any, JaxprEqn]], Replacement | None]
"""`(equation, definitions) -> replacement`, or None to keep it; `definitions` maps outputs to previous equations."""


def is_placed(equation: JaxprEqn) -> bool:
    """Whether the equation fixes its outputs' sharding, or depends on the position in a mesh, which a rewrite loses."""
    sharding = equation.params.get("out_sharding")
    spec = getattr(sharding, "spec", sharding)  # without axes inside `shard_map`
    return any(axes is not None for axes in spec or ()) or any(
        getattr(variable.aval, "vma", None) for variable in equation.invars
    )


def inner_jaxprs(equation: JaxprEqn) -> Iterator[Any]:
    """The programs inside one equation of a jaxpr: loops, branches, jitted and custom functions."""
    for value in equation.params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


def rewrite(jaxpr: Jaxpr, rules: Mapping[str, Rule]) -> Jaxpr:
    """The program with primitives replaced by `rules`, which are keyed by primitive name, inside loops too."""
    equations: list[JaxprEqn] = []
    definitions: dict[Any, JaxprEqn] = {}
    changed = False
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        found = rules[name](equation, definitions) if name in rules else None
        new = equation
        if found is not None:
            new = _call(equation, found)
        elif name in TRANSPARENT:
            new = _inside(equation, rules)
        changed |= new is not equation
        equations.append(new)
        definitions.update((variable, equation) for variable in equation.outvars)
    return jaxpr.replace(eqns=equations) if changed else jaxpr


def _inside(equation: JaxprEqn, rules: Mapping[str, Rule]) -> JaxprEqn:
    def new(value: Any) -> Any:
        if isinstance(value, Jaxpr):
            return rewrite(value, rules)
        if isinstance(value, ClosedJaxpr):
            inner = rewrite(value.jaxpr, rules)
            return value if inner is value.jaxpr else value.replace(jaxpr=inner)
        return value

    changed = {}
    for name, value in equation.params.items():
        replaced = tuple(map(new, value)) if isinstance(value, (tuple, list)) else new(value)
        same = all(a is b for a, b in zip(value, replaced)) if isinstance(replaced, tuple) else replaced is value
        if not same:
            changed[name] = replaced
    return equation.replace(params={**equation.params, **changed}) if changed else equation


def _call(equation: JaxprEqn, replacement: Replacement) -> JaxprEqn:
    """A call of the function, with the equation's inputs and outputs."""
    avals: list[Any] = [variable.aval for variable in replacement.inputs]
    call = _traced(replacement.fn, tuple((aval.shape, aval.dtype) for aval in avals), avals[0].sharding.mesh)
    return call.replace(invars=list(replacement.inputs), outvars=equation.outvars, source_info=equation.source_info)


@functools.lru_cache(maxsize=4096)
def _traced(fn: Callable[..., Any], shapes: tuple[tuple[tuple[int, ...], Any], ...], mesh: Any) -> JaxprEqn:
    # Jitted, the function is a single equation. Cached, it is traced once per shape.
    def named(*arguments: Any) -> Any:
        return fn(*arguments)

    named.__name__ = type(fn).__name__
    with jax.sharding.use_abstract_mesh(mesh):  # the equation's mesh, which exists inside `shard_map`
        (call,) = jax.make_jaxpr(jax.jit(named))(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)).eqns
    return call
