"""Names of an earlier release: they go on working for one more, with a warning."""

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that answers old names with what stands under the new ones.

    Args:
      module: the module's `__name__`.
      names: old name to new name, both in that module.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True, action="always") as told:
    ...     found = renamed("math", {"root": "sqrt"})("root")
    >>> found(9.0), str(told[0].message)
    (3.0, 'math.root is called math.sqrt now; the old name goes with the next release')
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name}", f"{module}.{names[name]}", stacklevel=3)
        return getattr(sys.modules[module], names[name])

    return get


def warn(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Say that something has another name now."""
    text = f"{old} is called {new} now; the old name goes with the next release"
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)
