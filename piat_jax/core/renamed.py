"""Deprecated names: they work for one more release, with a warning."""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from piat_jax.core.checks import InputError

T = TypeVar("T", bound=Callable[..., Any])


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that resolves old names to new ones.

    Args:
      module: the module's `__name__`.
      names: old names to new names, both in that module.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True, action="always") as told:
    ...     found = renamed("math", {"root": "sqrt"})("root")
    >>> found(9.0), str(told[0].message)
    (3.0, 'math.root is called math.sqrt now; the next release removes the old name')
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name}", f"{module}.{names[name]}", stacklevel=3)
        return getattr(sys.modules[module], names[name])

    return get


def renamed_argument(old: str, new: str) -> Callable[[T], T]:
    """A decorator for a function or class whose keyword argument `old` is now called `new`.

    >>> import warnings
    >>> @renamed_argument("size", "width")
    ... def area(width):
    ...     return width**2
    >>> with warnings.catch_warnings(record=True, action="always") as told:
    ...     found = area(size=3)
    >>> found, str(told[0].message)
    (9, 'area(size=...) is called area(width=...) now; the next release removes the old name')
    """

    def decorate(target: T) -> T:
        call = target.__init__ if inspect.isclass(target) else target

        @functools.wraps(call)
        def renaming(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                name = target.__name__
                if new in kwargs:
                    raise InputError(f"{name} received {old} and {new}, which are the same argument; leave out {old}")
                warn(f"{name}({old}=...)", f"{name}({new}=...)")
                kwargs[new] = kwargs.pop(old)
            return call(*args, **kwargs)

        if not inspect.isclass(target):
            return renaming  # type: ignore[return-value]
        target.__init__ = renaming  # type: ignore[misc]
        return target  # type: ignore[return-value]

    return decorate


def warn(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that a name has changed."""
    text = f"{old} is called {new} now; the next release removes the old name"
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)
