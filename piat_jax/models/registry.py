"""The networks by name."""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn

from piat_jax.core.registry import Registry, check_parentheses

Module = TypeVar("Module", bound=type[nn.Module])

MODELS: Registry[tuple[Callable[..., nn.Module], dict[str, Any]]] = Registry("model")
"""name -> (module class, its fixed options). Options not fixed here may be given to `create`."""


def model(
    name: str, *, title: str = "", summary: str = "", paper: str = "", **fixed: Any
) -> Callable[[Module], Module]:
    """A decorator that registers a module under `name` for configs; use several for several names.

    The module must have the attributes `num_classes`, `dtype`, `mean` and `std`. Its other attributes may be given to
    `create`, except those fixed here. Decorators apply from the lowest up, so the lowest name comes first in lists.

    Args:
      name, title, summary, paper: as in `Registry.register`.
      **fixed: attributes of the module that the name decides.

    Raises:
      InputError: the name is taken, or the decorator has no parentheses.

    >>> @model("flat", summary="One layer.", hidden=())
    ... class Flat(nn.Module):
    ...     num_classes: int
    ...     hidden: tuple[int, ...] = (100,)
    >>> MODELS.pop("flat") == (Flat, {"hidden": ()})
    True
    """
    check_parentheses(MODELS.kind, name)

    def add(module: Module) -> Module:
        MODELS.register(name, title=title, summary=summary, paper=paper)((module, fixed))
        return module

    return add
