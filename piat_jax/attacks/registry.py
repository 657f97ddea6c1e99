"""The attacks by name, as evaluations ask for them: "pgd20" is `pgd` with 20 steps."""

import inspect
from collections.abc import Callable
from typing import Any

from piat_jax.core.bound import Bound, fields_of
from piat_jax.core.checks import check_choice
from piat_jax.core.registry import Registry
from piat_jax.core.types import Array

ATTACKS: Registry[Callable[..., Array]] = Registry("attack")
"""Functions `(logits_fn, images, labels, *, key, indices, eps, norm, ...) -> images`."""

attack = ATTACKS.register

TO_TRAIN_WITH = ("n_fgsm", "msd")
"""Attacks whose images may be outside of the ball of `eps`: no accuracy under them would be one within it."""
NO_FIELDS = ("eps", "norm", "box", "noise", "count_correct")
"""Options that all attacks have as fields of their group, and such as methods or callers set."""


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


def attack_fields(name: str) -> dict[str, Any]:
    """The options of a training attack that a config can say, beside `eps` and `norm`, with their defaults.

    >>> attack_fields("pgd")["steps"], attack_fields("cw")["steps"], attack_fields("fgsm")
    (10, 20, {})
    """
    check_choice("attack", name, ATTACKS)
    function = ATTACKS[name]
    bound = function.options if isinstance(function, Bound) else {}
    found = fields_of(function.fn if isinstance(function, Bound) else function, without=NO_FIELDS)
    return {field: bound.get(field, default) for field, default in found.items()}


MINIMUM_NORM: Registry[Callable[..., Any]] = Registry("minimum-norm attack")
"""Functions `(logits_fn, images, labels, *, key, indices, active, norm, steps, ...) -> Nearest`: no radius is given."""

minimum_norm = MINIMUM_NORM.register
