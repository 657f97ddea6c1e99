"""Checks that need only an experiment's fields; all problems are reported together."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from piat_jax.attacks import ATTACKS
from piat_jax.averaging.piat import reset_momentum
from piat_jax.core.bound import Bound, bind
from piat_jax.core.checks import InputError, check_at_least, check_choice, check_range, check_seed, did_you_mean
from piat_jax.core.nested import leaves
from piat_jax.evaluation.autoattack import ATTACK_PRECISIONS, PRECISIONS
from piat_jax.experiment.data import check_data_fields
from piat_jax.experiment.evaluation import evaluation_attack
from piat_jax.experiment.experiment import Experiment, named
from piat_jax.experiment.hooks import check_stream
from piat_jax.experiment.methods import average_kind
from piat_jax.loggers import check_loggers
from piat_jax.objectives import LAS, RAT, Generalist
from piat_jax.objectives.lbgat import LBGAT
from piat_jax.objectives.parts import check_parts
from piat_jax.objectives.wrapper_checks import layers


def problems(experiment: Experiment, *, trains: bool = True) -> list[str]:
    """All problems of a config's values, one line each; uses neither data nor device.

    Without `trains`, the evaluation during training is not checked.
    """
    found = []

    def attempt(check: Callable[..., Any], *arguments: Any, group: str = "", **options: Any) -> None:
        try:
            with named(group) if group else contextlib.nullcontext():
                check(*arguments, **options)
        except InputError as error:
            found.append(f"config: {error}")

    attempt(check_seed, "seed", experiment.seed)
    for name in ("epochs", "batch_size", "microbatches"):
        attempt(check_at_least, name, getattr(experiment, name), 1)
    for name in ("evaluation.every_epochs", "evaluation.batch_size", "checkpoint.every_epochs", "log.steps_per_chunk"):
        group, _, field = name.partition(".")
        attempt(check_at_least, name, getattr(getattr(experiment, group), field), 1)
    attempt(check_at_least, "log.images", experiment.log.images, 0)
    if trains:
        attempt(check_loggers, experiment.log.to)
    attempt(check_choice, "nonfinite", experiment.nonfinite, ("stop", "skip"))
    check_data_fields(experiment, attempt)
    attempt(check_stream, experiment)
    for group in ("attack", "evaluation"):
        fields = experiment.attack if group == "attack" else experiment.evaluation
        eps, norm = fields.eps, fields.norm
        if group == "attack" or eps != experiment.attack.eps:
            attempt(check_range, f"{group}.eps", eps, 0, 1 if norm.lower() == "linf" else float("inf"), open_low=True)
    attempt(experiment.build_attack, group="attack")
    during = experiment.evaluation.attacks if trains else ()
    for name in dict.fromkeys((*during, *experiment.evaluation.final_attacks)):
        attempt(evaluation_attack, experiment, name)
    if trains and experiment.evaluation.select not in experiment.evaluation.attacks:
        hint = did_you_mean(experiment.evaluation.select, experiment.evaluation.attacks)
        found.append(
            f"config: evaluation.select={experiment.evaluation.select!r} is not evaluated during training{hint}"
        )
    for name, choices in (("precision", PRECISIONS), ("attack_precision", ATTACK_PRECISIONS)):
        attempt(check_choice, f"evaluation.{name}", getattr(experiment.evaluation, name), choices)
    attempt(experiment.build_model, 10)
    attempt(_check_groups, experiment)
    attempt(experiment.check_piat)
    attempt(experiment.build_average)
    for name in experiment.further:
        attempt(experiment.build_further, name)
    attempt(_check_optimizer, experiment, group="optimizer")
    if not any(line.startswith(("config: model", "config: mean", "config: dtype")) for line in found):
        try:
            training_attack = experiment.build_attack()
        except InputError:  # already listed
            training_attack = bind(ATTACKS["pgd"])
        attempt(_check_method, experiment, training_attack)
    averages = map(average_kind, (experiment.method.average, *experiment.further))
    if "fawa" in averages and not experiment.dataset.validation_examples:
        found.append("config: fawa needs held-out images for its averaging; set dataset.validation_examples")
    told = "\n".join(found)
    found += [
        f"config: {name}={value} must be finite"
        for name, value in leaves(experiment.plain()).items()
        if not name.endswith("eps") and not _is_finite(value) and f"{name}=" not in told  # a radius may be infinite
    ]
    return list(dict.fromkeys(found))


def _is_finite(value: Any) -> bool:
    """Whether every number in a field is finite; other values count as finite."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _check_optimizer(experiment: Experiment) -> None:
    check_range("layer_decay", experiment.optimizer.layer_decay, 0, 1, open_low=True)
    optimizer = experiment.build_optimizer(experiment.build_rate(1) if experiment.epochs > 0 else 0.1)
    if experiment.method.piat and experiment.piat.momentum == "reset":
        weights = {"kernel": jnp.zeros((2, 2))}
        jax.eval_shape(lambda: reset_momentum(optimizer.init(weights)))


def _check_groups(experiment: Experiment) -> None:
    groups = experiment.build_model(10).bn_groups
    if experiment.batch_size % groups:
        raise InputError(f"model.bn_groups={groups} does not divide batch_size={experiment.batch_size}")


def _check_method(experiment: Experiment, attack: Bound) -> None:
    method = experiment.build_objective(experiment.build_model(10), attack=attack)
    optimizer = experiment.optimizer
    for inside in layers(method)[:-1]:
        if isinstance(inside, (LBGAT, Generalist)) and (optimizer.name != "sgd" or optimizer.layer_decay != 1):
            raise InputError(
                f"{type(inside).__name__} trains a second network by SGD at the run's rate, which "
                f"optimizer.name={optimizer.name!r}, layer_decay={optimizer.layer_decay:g} does not have; give 'sgd', 1"
            )
    if experiment.extra_files and any(experiment.dataset.extra_smoothing):
        for inside in layers(method)[:-1]:
            if isinstance(inside, (LAS, RAT)):
                raise InputError(
                    f"dataset.extra_smoothing={experiment.dataset.extra_smoothing}: {type(inside).__name__} uses only "
                    "the label; leave it at 0"
                )
    if experiment.microbatches >= 1:
        check_parts(method, experiment.batch_size, experiment.microbatches)
