"""Epochs in their fixed order: train, epoch-end hooks, evaluate, record. Evaluation and saving come as callbacks."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.core.rng import named_key
from piat_jax.core.sharding import replicate
from piat_jax.core.types import Array, Context, EpochEnd, Objective, TrainState
from piat_jax.training.epoch import Examples, Recipe, run_epoch


class EpochRecord(NamedTuple):
    """What one epoch was like."""

    epoch: int  # 1-based
    train: Mapping[str, float]  # means over the epoch's steps
    scores: Mapping[str, float]  # what `evaluate` returned; empty where it did not run
    train_seconds: float
    evaluate_seconds: float
    images_per_second: float  # of training alone


def fit(
    state: TrainState,
    objective: Objective,
    examples: Examples,
    *,
    key: Array,
    recipe: Recipe,
    epochs: int,
    epoch_end: Sequence[EpochEnd] = (),
    evaluate: Callable[[TrainState, int], Mapping[str, float]] = lambda state, epoch: {},
    on_epoch: Callable[[TrainState, EpochRecord], None] = lambda state, record: None,
    on_chunk: Callable[[int, int, int], None] = lambda epoch, done, total: None,
    steps_per_chunk: int = 50,
) -> TrainState:
    """Train from `state.epoch` to `epochs`.

    After each epoch, in this order: the objective's `after_epoch`; the `epoch_end` hooks, each seeing what the one
    before returned (PIAT first, then what averages its weights); `evaluate(state, epoch)`; `on_epoch(state, record)`,
    which saves and logs. So what is evaluated and saved is what the next epoch starts from.

    Args:
      state: donated; at the end of an epoch, as `on_epoch` got it.
      objective: the method.
      examples: training data, uint8, on the device.
      key: the run's key: with the same one, a run that is stopped and resumed equals one that is not.
      recipe: optimizer, batch size and augmentation.
      epochs: the last epoch, 1-based.
      epoch_end: pure functions `(state, epoch) -> state`.
      evaluate: scores of a state; may return nothing.
      on_epoch: called once an epoch, last.
      on_chunk: called as `(epoch, steps done, steps)` during an epoch.
      steps_per_chunk: steps between two looks at the loss.

    Returns:
      The state after the last epoch.

    Raises:
      TrainingDivergedError: a loss that is not finite; what `on_epoch` saved last is still good.
    """
    objective, state, examples, key = replicate((objective, state, examples, key), recipe.mesh)
    for epoch in range(int(state.epoch) + 1, epochs + 1):
        began = time.perf_counter()
        state, metrics = run_epoch(
            state,
            objective,
            examples,
            key=key,
            recipe=recipe,
            epochs=epochs,
            steps_per_chunk=steps_per_chunk,
            on_chunk=lambda done, total, epoch=epoch: on_chunk(epoch, done, total),
        )
        state = _close_epoch(state, objective, key, jnp.int32(epochs))
        for hook in epoch_end:
            # A buffer of its own: hooks may donate the state.
            state = hook(state, jnp.int32(epoch))
        jax.block_until_ready(state)
        trained = time.perf_counter()
        scores = evaluate(state, epoch)
        evaluated = time.perf_counter()
        images = examples.labels.shape[0] // recipe.batch_size * recipe.batch_size
        record = EpochRecord(epoch, metrics, scores, trained - began, evaluated - trained, images / (trained - began))
        on_epoch(state, record)
    return state


@functools.partial(jax.jit, donate_argnames="state")
def _close_epoch(state: TrainState, objective: Objective, key: Array, epochs: Array) -> TrainState:
    """Count the epoch, after the objective's own end of it."""
    context = Context(jax.random.fold_in(named_key(key, "epoch"), state.epoch), state.step, state.epoch, epochs)
    objective_state = objective.after_epoch(state.objective_state, context)
    return dataclasses.replace(state, epoch=state.epoch + 1, objective_state=objective_state)
