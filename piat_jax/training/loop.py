"""Epochs in a fixed order: train, epoch-end hooks, evaluate, record. Evaluation and saving are callbacks."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.core.rng import named_key
from piat_jax.core.sharding import put_state, replicate
from piat_jax.core.types import Array, Context, EpochEnd, Objective, TrainState
from piat_jax.objectives.parts import check_parts
from piat_jax.training.epoch import Recipe, run_epoch
from piat_jax.training.examples import Examples, on_device
from piat_jax.training.stopping import Interrupted, Position, StopTraining
from piat_jax.training.streaming import Stream

SECONDS_PER_CHUNK = 2.0
"""About the longest time before a request to stop is handled, if a single step takes less."""


class EpochRecord(NamedTuple):
    """The record of one epoch."""

    epoch: int  # 1-based
    train: Mapping[str, float]  # means over the epoch's steps
    scores: Mapping[str, float]  # returned by `evaluate`; empty if it did not run
    train_seconds: float
    evaluate_seconds: float
    images_per_second: float  # of training only


def fit(
    state: TrainState,
    objective: Objective,
    examples: Examples | Stream,
    *,
    key: Array,
    recipe: Recipe,
    epochs: int,
    epoch_end: Sequence[EpochEnd] = (),
    evaluate: Callable[[TrainState, int], Mapping[str, float]] = lambda state, epoch: {},
    on_epoch: Callable[[TrainState, EpochRecord], None] = lambda state, record: None,
    on_chunk: Callable[[int, int, int], None] = lambda epoch, done, total: None,
    steps_per_chunk: int = 50,
    position: Position | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Train from `state.epoch`, or from `position` within an epoch, to `epochs`.

    After each epoch, the order is: the objective's `after_epoch`; the `epoch_end` hooks, each with the result of the
    previous one (PIAT first, then averages of its weights); `evaluate(state, epoch)`; `on_epoch(state, record)`, which
    saves and logs. The next epoch therefore starts from the state that was evaluated and saved.

    Args:
      state: donated; at the end of an epoch, as `on_epoch` received it.
      objective: the method.
      examples: training data: uint8 images `[N, H, W, C]` and labels `[N]` in [0, K) of any integer type, as NumPy or
        JAX arrays, which are moved to the device once. Or a `Stream` from the host.
      key: the run's key; with the same key, a resumed run equals an uninterrupted one.
      recipe: optimizer, batch size and augmentation.
      epochs: the last epoch, 1-based.
      epoch_end: pure functions `(state, epoch) -> state`.
      evaluate: scores of a state; may be empty. It may raise `Interrupted` to stop.
      on_epoch: called once per epoch, last.
      on_chunk: called as `(epoch, steps done, steps)` during an epoch.
      steps_per_chunk: the most steps between two checks of the loss; fewer if they take longer than two seconds.
      position: the position of a `StopTraining` or `TrainingDivergedError`, to resume from its state.
      should_stop: called after each chunk and each epoch.

    Returns:
      The state after the last epoch.

    Raises:
      StopTraining: training was asked to stop; holds the state, and the position to resume from.
      TrainingDivergedError: a loss or gradient that is not finite; holds the state before the step and its position.
      InputError: examples other than described above, such as float images or labels from 1 to K; a recipe whose
        microbatches do not divide the batch.
    """
    check_parts(objective, recipe.batch_size, recipe.microbatches, recipe.mesh.size if recipe.mesh else 1)
    if isinstance(examples, Examples):
        examples = on_device(examples, objective, state, recipe.mesh)
    objective, examples, key = replicate((objective, examples, key), recipe.mesh)
    state = put_state(state, recipe.mesh, split=recipe.split_state)
    steps = recipe.steps(examples.count)
    for epoch in range(position.epoch if position else int(state.epoch) + 1, epochs + 1):
        at = position if position and position.epoch == epoch else Position(epoch)
        if should_stop():
            raise StopTraining(state, at)
        began = time.perf_counter() - at.seconds
        if int(state.epoch) < epoch:
            state, metrics = run_epoch(
                state,
                objective,
                examples,
                key=key,
                recipe=recipe,
                epochs=epochs,
                steps_per_chunk=steps_per_chunk,
                # Processes that train together must run the same chunks, so clocks must not decide.
                seconds_per_chunk=SECONDS_PER_CHUNK if jax.process_count() == 1 else math.inf,
                on_chunk=lambda done, total, epoch=epoch: on_chunk(epoch, done, total),
                position=at,
                should_stop=should_stop,
            )
            state = _close_epoch(state, objective, key, jnp.int32(epochs))
            for hook in epoch_end:
                # A new buffer for each hook: hooks may donate the state.
                state = hook(state, jnp.int32(epoch))
            jax.block_until_ready(state)
            at = Position(epoch, steps, metrics=metrics, seconds=time.perf_counter() - began)
        trained = time.perf_counter()
        try:
            scores = evaluate(state, epoch)
        except Interrupted:
            raise StopTraining(state, at) from None
        evaluated = time.perf_counter()
        rate = steps * recipe.batch_size / max(at.seconds, 1e-9)
        on_epoch(state, EpochRecord(epoch, at.metrics, scores, at.seconds, evaluated - trained, rate))
    return state


@functools.partial(jax.jit, donate_argnames="state")
def _close_epoch(state: TrainState, objective: Objective, key: Array, epochs: Array) -> TrainState:
    """Run the objective's `after_epoch`, then count the epoch."""
    context = Context(jax.random.fold_in(named_key(key, "epoch"), state.epoch), state.step, state.epoch, epochs)
    objective_state = objective.after_epoch(state.objective_state, context)
    return dataclasses.replace(state, epoch=state.epoch + 1, objective_state=objective_state)
