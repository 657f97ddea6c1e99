"""The attacks by name, as evaluations ask for them: "pgd20" is `pgd` with 20 steps."""

import inspect
from collections.abc import Callable
from typing import Any

from piat_jax.core.bound import Bound
from piat_jax.core.checks import check_choice
from piat_jax.core.registry import Registry
from piat_jax.core.types import Array

ATTACKS: Registry[Callable[..., Array]] = Registry("attack")
"""Functions `(logits_fn, images, labels, *, key, indices, eps, norm, ...) -> images`."""

attack = ATTACKS.register


def takes(name: str) -> set[str]:
    """The options that an attack takes, beside `key` and `indices`, which are the data's.

    Raises:
      InputError: no attack has this name.

    >>> sorted(takes("fgsm")), takes("cw") >= {"steps", "restarts"}
    (['box', 'eps', 'loss', 'norm', 'targets'], True)
    """
    check_choice("attack", name, ATTACKS)
    function = ATTACKS[name]
    parameters = inspect.signature(function.fn if isinstance(function, Bound) else function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"key", "indices"}


MINIMUM_NORM: Registry[Callable[..., Any]] = Registry("minimum-norm attack")
"""Functions `(logits_fn, images, labels, *, key, indices, active, norm, steps, ...) -> Nearest`: no radius is given."""

minimum_norm = MINIMUM_NORM.register
