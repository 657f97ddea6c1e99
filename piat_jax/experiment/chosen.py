"""Fields that depend on a group's choices: arguments of an optimizer and schedule, options of an attack."""

from collections.abc import Mapping
from typing import Any

from piat_jax.attacks.registry import ATTACKS, attack_fields
from piat_jax.core.checks import check_choice
from piat_jax.experiment.fields import AttackFields, OptimizerFields
from piat_jax.training.optimizer import optimizer_fields, optimizer_names
from piat_jax.training.schedules import SCHEDULES, schedule_fields

CHOOSERS: dict[str, tuple[str, ...]] = {"optimizer": ("name", "schedule"), "attack": ("name",)}
"""The fields of a group that decide which other fields it has."""
DEFAULTS = {
    "optimizer": {name: getattr(OptimizerFields(), name) for name in CHOOSERS["optimizer"]},
    "attack": {name: getattr(AttackFields(), name) for name in CHOOSERS["attack"]},
}


def rest_fields(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The undeclared fields of a group, which its choices bring, with their defaults.

    Args:
      group: one of `CHOOSERS`.
      values: the group's fields; only those of `CHOOSERS` matter.

    Raises:
      InputError: a choice is unknown.

    >>> rest_fields("optimizer", {"name": "lion", "schedule": "constant"})["b2"]
    0.99
    """
    chosen = {**DEFAULTS[group], **{name: values[name] for name in CHOOSERS[group] if name in values}}
    if group == "attack":
        check_choice("attack.name", chosen["name"], ATTACKS)
        return attack_fields(chosen["name"])
    check_choice("optimizer.name", chosen["name"], optimizer_names())
    check_choice("optimizer.schedule", chosen["schedule"], SCHEDULES)
    return optimizer_fields(chosen["name"]) | schedule_fields(chosen["schedule"])


def completed(group: str, values: Mapping[str, Any], before: Mapping[str, Any] = {}) -> dict[str, Any]:
    """A group's fields with all that its choices bring, and without those of other choices.

    Args:
      group: one of `CHOOSERS`.
      values: its fields.
      before: the group in the method's default config. If its choice was another one, a field of both choices keeps
        its value if that has been changed since, and else takes the new default.

    >>> sorted(completed("optimizer", {"schedule": "constant", "lr": 0.5, "lr_values": (1.0,)}))[:2]
    ['lr', 'lr_every']
    """
    rest, known = rest_fields(group, values), of_any(group)
    same = all(before.get(name) == values.get(name) for name in CHOOSERS[group])
    kept = {
        name: value
        for name, value in values.items()
        if (name in rest and (same or name not in before or value != before[name])) or name not in known
    }
    return {**{name: default for name, default in rest.items() if name not in kept}, **kept}


def of_any(group: str) -> set[str]:
    """The names of all fields that some choice brings to a group."""
    if group == "attack":
        return {field for name in ATTACKS for field in attack_fields(name)}
    return {field for name in optimizer_names() for field in optimizer_fields(name)} | {
        field for name in SCHEDULES for field in schedule_fields(name)
    }
