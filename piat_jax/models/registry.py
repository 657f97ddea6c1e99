"""The networks by name."""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn

from piat_jax.core.registry import Registry

Module = TypeVar("Module", bound=type[nn.Module])

MODELS: Registry[tuple[Callable[..., nn.Module], dict[str, Any]]] = Registry("model")
"""name -> (module class, its fixed options). Options not fixed here may be given to `create`."""


def model(
    name: str, *, title: str = "", summary: str = "", paper: str = "", **fixed: Any
) -> Callable[[Module], Module]:
    """A decorator that lets configs call a module `name`; one for each of several names.

    The module has attributes `num_classes`, `dtype`, `mean` and `std`; its other ones may be given to `create`, but for
    those that are fixed here. Decorators act from the lowest up, so the lowest name comes first in the list.

    Args:
      name, title, summary, paper: as `Registry.register` takes them.
      **fixed: attributes of the module that the name decides.

    Raises:
      InputError: the name is taken.

    >>> @model("flat", summary="One layer.", hidden=())
    ... class Flat(nn.Module):
    ...     num_classes: int
    ...     hidden: tuple[int, ...] = (100,)
    >>> MODELS.pop("flat") == (Flat, {"hidden": ()})
    True
    """

    def add(module: Module) -> Module:
        MODELS.register(name, title=title, summary=summary, paper=paper)((module, fixed))
        return module

    return add
