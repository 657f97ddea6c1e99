"""The checks that need only the config: everything that is wrong with it, at once."""

import math
import re
from collections.abc import Callable
from typing import Any

from piat_jax.attacks import ATTACKS
from piat_jax.cli import build, datasets, evaluators, hooks
from piat_jax.cli.config import Config, leaves
from piat_jax.cli.methods import parse_method
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError, check_at_least, check_choice, check_range, check_seed, did_you_mean
from piat_jax.training import piecewise_linear, sgd


def problems(config: Config, *, trains: bool = True) -> list[str]:
    """Everything that is wrong with a config's values, one line each; touches neither data nor device.

    Without `trains` what is evaluated during training does not matter.
    """
    found = []

    def attempt(check: Callable[..., Any], *arguments: Any, group: str = "", **options: Any) -> None:
        try:
            check(*arguments, **options)
        except InputError as error:
            # A field that is named without its group: momentum=... is PIAT's or the optimizer's.
            inside = f"{group}." if group and re.match(r"\w+=", str(error)) else ""
            found.append(f"config: {inside}{error}")

    attempt(check_seed, "seed", config.seed)
    for name in ("epochs", "batch_size"):
        attempt(check_at_least, name, config[name], 1)
    for name in ("evaluation.every_epochs", "evaluation.batch_size", "checkpoint.every_epochs", "log.steps_per_chunk"):
        group, _, field = name.partition(".")
        attempt(check_at_least, name, config[group][field], 1)
    attempt(check_choice, "nonfinite", config.nonfinite, ("stop", "skip"))
    datasets.problems(config, attempt)
    attempt(hooks.check_stream, config)
    for group in ("attack", "evaluation"):
        eps, norm = config[group].eps, config[group].norm
        if group == "attack" or eps != config.attack.eps:
            attempt(check_range, f"{group}.eps", eps, 0, 1 if norm.lower() == "linf" else float("inf"), open_low=True)
    attempt(build.attack, config, group="attack")
    during = config.evaluation.attacks if trains else ()
    for name in dict.fromkeys((*during, *config.evaluation.final_attacks)):
        attempt(evaluators.evaluation_attack, config, name)
    if trains and config.evaluation.select not in config.evaluation.attacks:
        hint = did_you_mean(config.evaluation.select, config.evaluation.attacks)
        found.append(f"config: evaluation.select={config.evaluation.select!r} is not evaluated during training{hint}")
    attempt(check_choice, "evaluation.precision", config.evaluation.precision, ("highest", "default"))
    attempt(build.model, config, 10)
    attempt(_check_groups, config)
    attempt(build.piat, config, group="piat")
    attempt(build.average, config, group="average")
    attempt(sgd, 0.1, **build.sgd_options(config), group="optimizer")
    attempt(piecewise_linear, config.optimizer.lr_epochs, config.optimizer.lr_values, 1, group="optimizer")
    if not any(line.startswith(("config: model", "config: mean", "config: dtype")) for line in found):
        try:
            training_attack = build.attack(config)
        except InputError:  # listed already
            training_attack = bind(ATTACKS["pgd"])
        attempt(build.objective, config, build.model(config, 10), training_attack)
    if parse_method(config.method).average == "fawa" and not config.dataset.validation_examples:
        found.append("config: fawa averages by accuracy on held-out images; set dataset.validation_examples")
    named = "\n".join(found)
    found += [
        f"config: {name}={value} must be finite"
        for name, value in leaves(config)
        if not name.endswith("eps") and not _is_finite(value) and f"{name}=" not in named  # a radius may be infinite
    ]
    return list(dict.fromkeys(found))


def _is_finite(value: Any) -> bool:
    """Whether every number in a field is; texts and the like are."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _check_groups(config: Config) -> None:
    groups = build.model(config, 10).bn_groups
    if config.batch_size % groups:
        raise InputError(f"model.bn_groups={groups} does not divide batch_size={config.batch_size}")
