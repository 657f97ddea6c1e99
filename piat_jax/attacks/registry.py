"""The attacks by name, as evaluations use them: "pgd20" is `pgd` with 20 steps."""

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
"""Attacks whose images may leave the ball of `eps`, so an accuracy under them is not an accuracy within it."""
NO_FIELDS = ("eps", "norm", "box", "noise", "count_correct")
"""Options without a config field per attack: the group's shared fields, and options that methods or callers set."""


def takes(name: str) -> set[str]:
    """The options that an attack takes, except `key` and `indices`, which belong to the data.

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
    """A training attack's options that a config can set, except `eps` and `norm`, with their defaults.

    >>> attack_fields("pgd")["steps"], attack_fields("cw")["steps"], attack_fields("fgsm")
    (10, 20, {})
    """
    check_choice("attack", name, ATTACKS)
    function = ATTACKS[name]
    bound = function.options if isinstance(function, Bound) else {}
    found = fields_of(function.fn if isinstance(function, Bound) else function, without=NO_FIELDS)
    return {field: bound.get(field, default) for field, default in found.items()}


MINIMUM_NORM: Registry[Callable[..., Any]] = Registry("minimum-norm attack")
"""Functions `(logits_fn, images, labels, *, key, indices, active, norm, steps, ...) -> Nearest`, without a radius."""

minimum_norm = MINIMUM_NORM.register
