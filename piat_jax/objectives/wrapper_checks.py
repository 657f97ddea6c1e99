"""Checks of the inner method's attack for wrappers, and projection onto their radius."""

from typing import Any

import jax.numpy as jnp

from piat_jax.core.bound import Bound
from piat_jax.core.checks import InputError
from piat_jax.core.norms import project
from piat_jax.core.types import AdversarialBatch
from piat_jax.objectives.base import Wrapper


def layers(method: Any) -> list[Any]:
    """The wrappers from the outermost in, then the objective inside all of them."""
    return [method, *layers(method.inner)] if isinstance(method, Wrapper) else [method]


def innermost(method: Any) -> Any:
    """The objective inside all wrappers."""
    return layers(method)[-1]


def attack_options(method: Any) -> dict[str, Any]:
    """The options of the innermost method's attack, including defaults; empty if the attack is not made by `bind`."""
    attack = getattr(innermost(method), "attack", None)
    return attack.options if isinstance(attack, Bound) else {}


def check_attack_takes(method: Any, *options: str) -> None:
    """Raise InputError if the attack of a method, or of a wrapper's inner method, lacks an option the method sets."""
    known = attack_options(method)
    for option in options:
        if known and option not in known:
            name = type(method).__name__
            raise InputError(f"{name} sets the attack's {option!r}, which this attack does not take; give attack=pgd")


def check_one_run(wrapper: Wrapper) -> None:
    """Raise InputError if the inner attack restarts or keeps the best iterate: this wrapper follows one run."""
    known = attack_options(wrapper.inner)
    for option, needed in (("restarts", 1), ("keep", "last")):
        if known.get(option, needed) != needed:
            name = type(wrapper).__name__
            raise InputError(f"{name} follows one run to its end: attack.{option}={known[option]!r} must be {needed!r}")


def check_only_one_chooses(wrapper: Wrapper) -> None:
    """Raise InputError if an inner wrapper also chooses radius and step size."""
    for inside in layers(wrapper.inner)[:-1]:
        if inside.chooses_attack:
            names = f"{type(wrapper).__name__} and {type(inside).__name__}"
            raise InputError(f"{names} both choose radius and step size of every example; leave out one of them")


def check_sees_the_images(wrapper: Wrapper) -> None:
    """Raise InputError if an inner wrapper changes the images that this wrapper's choices depend on."""
    for inside in layers(wrapper.inner)[:-1]:
        if inside.changes_images:
            name, other = type(wrapper).__name__, type(inside).__name__
            raise InputError(f"{name} chooses by images that {other} then changes; leave out {name} or {other}")


def hold_to_radius(batch: AdversarialBatch, eps: Any, norm: str) -> AdversarialBatch:
    """The batch with its perturbations projected onto the ball of radius `eps`; images stay exactly in the box."""
    clean, images = batch.clean.images, batch.images
    held = clean + project(images - clean, eps, norm)
    return batch._replace(images=jnp.clip(held, jnp.minimum(clean, images), jnp.maximum(clean, images)))
