"""Changes of the state before the first epoch and after each: PIAT, averages, re-estimated BatchNorm statistics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.averaging import FAWA, Average, Gated, average_of, averaged, recompute_batch_stats, with_average
from piat_jax.core.checks import InputError
from piat_jax.core.types import Array, EpochEnd, Model, TrainState, Variables
from piat_jax.data import Split
from piat_jax.data.batching import steps_per_epoch
from piat_jax.evaluation import worst_class
from piat_jax.experiment.evaluation import evaluation_attack, evaluator
from piat_jax.experiment.experiment import Experiment


def start(experiment: Experiment, state: TrainState) -> TrainState:
    """A fresh state with the copies of the weights that PIAT and averages keep."""
    for hook in filter(None, (experiment.build_piat(), *experiment.build_averages())):
        state = hook.init(state)
    return state


def epoch_end(experiment: Experiment, net: Model, images: Any, num_classes: int, monitor: Split) -> list[EpochEnd]:
    """The hooks after each epoch: PIAT, then the averages, each followed by re-estimated statistics if requested.

    `images` are the training images, uint8; FAWA decides by the accuracy on `monitor`.
    """
    hooks: list[EpochEnd] = []
    piat = experiment.build_piat()
    if piat:
        hooks.append(jax.jit(piat, donate_argnums=0))
        if piat.batch_stats == "recompute":
            hooks.append(_recomputed(experiment, net, images, lambda state: state.variables, _with_variables))
    for kept in experiment.build_averages():
        if kept.every == "epoch":
            hook: EpochEnd = jax.jit(kept, donate_argnums=0)
            if isinstance(kept, FAWA):
                hook = Gated(hook, _worst_class_reaches(experiment, kept.threshold, num_classes, monitor))
            hooks.append(hook)
        if kept.batch_stats == "recompute":
            hooks.append(_averaged_anew(experiment, kept, net, images))
    return hooks


def check_stream(experiment: Experiment) -> None:
    """Raise InputError if BatchNorm statistics would be re-estimated on training images that stay on the host."""
    kept = filter(None, (experiment.build_piat(), *experiment.build_averages()))
    anew = any(each.batch_stats == "recompute" for each in kept)
    encoded = experiment.dataset.image_size
    if (experiment.dataset.stream or encoded) and anew:
        field, fix = (f"image_size={encoded}", "") if encoded else ("stream=True", ", or set dataset.stream=False")
        raise InputError(
            f"dataset.{field} keeps the training images on the host, and {experiment.method} re-estimates BatchNorm "
            f"statistics on them; leave out swa and batch_stats=recompute{fix}"
        )


def _recomputed(
    experiment: Experiment,
    net: Model,
    images: Array,
    get: Callable[[TrainState], Variables],
    put: Callable[[TrainState, Variables], TrainState],
) -> EpochEnd:
    """A function that re-estimates BatchNorm statistics on the clean training images."""
    count = steps_per_epoch(len(images), experiment.batch_size)
    # Shuffled as in training: batches from data that is sorted by class have other variances.
    order = np.random.default_rng(experiment.seed).permutation(len(images))[: count * experiment.batch_size]

    @jax.jit
    def recompute(state: TrainState, images: Array, order: Array) -> TrainState:
        return put(
            state, recompute_batch_stats(net, get(state), images[order], momentum=1 - getattr(net, "bn_momentum", 0.1))
        )

    batches = jnp.asarray(order.reshape(count, experiment.batch_size), jnp.int32)
    return lambda state, epoch: recompute(state, images, batches)


def _averaged_anew(experiment: Experiment, kept: Average, net: Model, images: Array) -> EpochEnd:
    """A hook that re-estimates an average's BatchNorm statistics, once the average has begun."""

    def put(state: TrainState, variables: Variables) -> TrainState:
        before = average_of(state, kept.name)
        after = before.variables._replace(model_state=variables.model_state)
        return with_average(state, kept.name, before._replace(variables=after))

    anew = _recomputed(experiment, net, images, lambda state: averaged(state, kept.name), put)
    first = round(kept.start * experiment.epochs)
    return lambda state, epoch: anew(state, epoch) if int(epoch) > first else state


def _with_variables(state: TrainState, variables: Variables) -> TrainState:
    return dataclasses.replace(state, model_state=variables.model_state)


def _worst_class_reaches(
    experiment: Experiment, threshold: float, num_classes: int, split: Split
) -> Callable[[TrainState], bool]:
    """Whether PGD-10 leaves every class of the held-out images at least `threshold` accurate."""
    correct = evaluator(experiment, experiment.build_model(num_classes, dtype="float32"), split)
    return lambda state: bool(
        worst_class(correct(state.variables, evaluation_attack(experiment, "pgd10")), split.labels, num_classes)
        >= threshold
    )
