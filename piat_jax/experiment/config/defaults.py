"""What a method's config has before a file or an override changes it, and what its choices bring with them."""

import contextlib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict, FieldReference

from piat_jax.experiment.chosen import completed
from piat_jax.experiment.config.values import ONE_OR_SEVERAL
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.fields import Fields
from piat_jax.experiment.methods import method_groups, parse_method
from piat_jax.experiment.run import KNOTS
from piat_jax.training.schedules import SCHEDULES, schedule_fields

OF_DEFAULTS = 120
"""The number of epochs that the schedules' default knots are for."""
FOLLOWING = ("eps", "step_size", "norm")
"""Evaluation fields that follow the training attack until they are set, as a wrapper's eps does."""


def default_config(method: str = "pgd_at") -> ConfigDict:
    """All fields of a method's experiment with their defaults, for config files to change.

    `evaluation.eps`, `step_size` and `norm` and the wrappers' `eps` follow the training attack until they are set.
    """
    stack = parse_method(method)
    groups = method_groups(stack)
    of_attack = groups.pop("attack")
    wrappers = {name: Fields(groups[name]) for name in stack.wrappers}
    plain = Experiment(
        method=stack,
        objective=Fields(groups["objective"]),
        wrappers=wrappers,
        average=Fields(groups.get("average", {})),
        further={name: Fields(groups[name]) for name in stack.further},
    ).plain()
    for path in ONE_OR_SEVERAL:
        group, _, name = path.partition(".")
        plain[group][name] = FieldReference(plain[group][name], field_type=object)  # else it accepts only one type
    config: Any = ConfigDict(plain)
    config.attack.update(of_attack)
    for group, name in followers(config, wrappers):
        config[group][name] = config.attack.get_oneway_ref(name)
    return config


def followers(config: Any, wrappers: Iterable[str]) -> list[tuple[str, str]]:
    """The fields that follow the attack's field of the same name, as (group, name)."""
    found = [(group, "eps") for group in wrappers if "eps" in config[group]]
    return [*found, *(("evaluation", name) for name in FOLLOWING if name in config["attack"])]


def complete(config: Any, group: str) -> None:
    """Add the fields that a group's choices bring, and remove those of other choices."""
    if "method" not in config or group not in config:
        return
    fields: Any = config[group]
    before = to_dict(fields)
    after = completed(group, before, to_dict(default_config(str(config["method"])))[group])
    with config.unlocked() if isinstance(config, ConfigDict) else contextlib.nullcontext():
        for name in before.keys() - after.keys():
            del fields[name]
        for name, value in after.items():
            if name not in before or before[name] != value:
                fields[name] = value


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts, with its references resolved."""
    return {name: to_dict(value) if isinstance(value, ConfigDict | dict) else value for name, value in config.items()}


def place_default_knots(optimizer: Any, epochs: float) -> None:
    """Move a schedule's default knots to the same fractions of a run of `epochs` epochs."""
    if optimizer.get("schedule") in SCHEDULES:
        default = schedule_fields(optimizer["schedule"])
        own = [knot for knot in KNOTS if knot in default and optimizer[knot] == default[knot]]
        move_knots(optimizer, epochs / OF_DEFAULTS, own)


def move_knots(fields: Any, share: float, names: Iterable[str]) -> None:
    """Move the learning-rate knots to the same fractions of a run that is `share` times as long."""
    for name in names:
        if name in fields and fields["lr_unit"] == "epochs":
            places = fields[name]
            many = isinstance(places, tuple | list)
            fields[name] = tuple(round(share * knot, 6) for knot in places) if many else round(share * places, 6)
