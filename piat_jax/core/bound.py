"""Bind hyper-parameters to a pure function so that equal bindings share one compilation."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from piat_jax.core.checks import InputError, described, did_you_mean


def fields_of(fn: Callable[..., Any], *, without: Sequence[str] = ()) -> dict[str, Any]:
    """A function's arguments that a config can set, with defaults: numbers, strings, booleans, and tuples of these.

    Args:
      fn: any function; parameters with other defaults, or without a default, are left out.
      without: further names to leave out.

    >>> def blur(images, *, width: float = 1.0, steps: int = 3, kernel=None): ...
    >>> fields_of(blur, without=("steps",))
    {'width': 1.0}
    """
    parameters = inspect.signature(fn).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.name not in without and type(parameter.default) in (bool, int, float, str, tuple)
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bound:
    """A function with some keyword arguments fixed; made by `bind`.

    Equal bindings share one compilation (equal functools.partial objects do not). A binding is a pytree whose leaves
    are the bound numbers: if it is passed as an argument to a jitted function, a sweep over `eps` compiles once.
    """

    fn: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    traced: dict[str, Any]
    static: tuple[tuple[str, Any], ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; arguments given here override bound ones."""
        return self.fn(*args, **{**dict(self.static), **self.traced, **kwargs})

    @property
    def options(self) -> dict[str, Any]:
        """All keyword arguments with a value: the bound ones, and defaults for the rest."""
        parameters = inspect.signature(self.fn).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return {**defaults, **dict(self.static), **self.traced}

    def __repr__(self) -> str:
        bound = {**dict(self.static), **self.traced}
        inner = ", ".join(f"{name}={value!r}" for name, value in sorted(bound.items()))
        return f"{self.fn.__name__}({inner})"


def bind(fn: Callable[..., Any], **hyper_parameters: Any) -> Bound:
    """Fix keyword arguments of `fn`: floats, arrays and other bound functions are traced, all others are static.

    Args:
      fn: a function defined at module level, so that equal bindings are equal, or a bound function to bind further.
      **hyper_parameters: keyword arguments of `fn`. Integers, strings, booleans and functions are part of the
        compiled program; floats and arrays may change without recompiling.

    Raises:
      InputError: `fn` is not a function, or does not take an argument with this name.

    >>> from piat_jax.attacks import pgd
    >>> bind(pgd, eps=0.1, steps=3)
    pgd(eps=0.1, steps=3)
    >>> bind(pgd, epsilon=0.1)
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: pgd takes no argument 'epsilon'; did you mean 'eps'?
    """
    if isinstance(fn, Bound):
        return bind(fn.fn, **{**dict(fn.static), **fn.traced, **hyper_parameters})
    if not callable(fn):
        raise InputError(f"fn is {described(fn)}; give the function itself, such as bind(piat_jax.attacks.pgd, ...)")
    parameters = inspect.signature(fn).parameters
    known = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    for name in hyper_parameters:
        if name not in known:
            raise InputError(f"{fn.__name__} takes no argument {name!r}{did_you_mean(name, known)}")
    traced = {
        k: v for k, v in hyper_parameters.items() if isinstance(v, (float, np.floating, np.ndarray, jax.Array, Bound))
    }
    static = {k: v for k, v in hyper_parameters.items() if k not in traced}
    return Bound(fn, traced, tuple(sorted(static.items())))
