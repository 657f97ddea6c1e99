"""Epochs in their fixed order: train, epoch-end hooks, evaluate, record. Evaluation and saving come as callbacks."""

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
"""How long a request to stop has to wait, about, where a single step takes less."""


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
    """Train from `state.epoch`, or where in an epoch `position` says, to `epochs`.

    After each epoch, in this order: the objective's `after_epoch`; the `epoch_end` hooks, each seeing what the one
    before returned (PIAT first, then what averages its weights); `evaluate(state, epoch)`; `on_epoch(state, record)`,
    which saves and logs. So what is evaluated and saved is what the next epoch starts from.

    Args:
      state: donated; at the end of an epoch, as `on_epoch` got it.
      objective: the method.
      examples: training data: images `[N, H, W, C]` in uint8 and labels `[N]` in [0, K), of any type of whole numbers,
        both arrays of NumPy or JAX; they are moved to the device once. Or a `Stream` from the host.
      key: the run's key: with the same one, a run that is stopped and resumed equals one that is not.
      recipe: optimizer, batch size and augmentation.
      epochs: the last epoch, 1-based.
      epoch_end: pure functions `(state, epoch) -> state`.
      evaluate: scores of a state; may return nothing. It may raise `Interrupted` to stop.
      on_epoch: called once an epoch, last.
      on_chunk: called as `(epoch, steps done, steps)` during an epoch.
      steps_per_chunk: the most steps between two looks at the loss; fewer where they take longer than two seconds.
      position: that of a `StopTraining` or `TrainingDivergedError`, to go on from its state.
      should_stop: asked after each chunk and each epoch.

    Returns:
      The state after the last epoch.

    Raises:
      StopTraining: training was asked to stop; holds the state, and the position to go on from.
      TrainingDivergedError: a loss or gradient that is not finite; holds the state before and its position.
      InputError: examples that are not what is said above, such as images in floats or labels from 1 to K; a recipe
        whose microbatches are no parts of the batch.
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
                # Processes that train together run the same chunks, whatever their clocks say.
                seconds_per_chunk=SECONDS_PER_CHUNK if jax.process_count() == 1 else math.inf,
                on_chunk=lambda done, total, epoch=epoch: on_chunk(epoch, done, total),
                position=at,
                should_stop=should_stop,
            )
            state = _close_epoch(state, objective, key, jnp.int32(epochs))
            for hook in epoch_end:
                # A buffer of its own: hooks may donate the state.
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
    """Count the epoch, after the objective's own end of it."""
    context = Context(jax.random.fold_in(named_key(key, "epoch"), state.epoch), state.step, state.epoch, epochs)
    objective_state = objective.after_epoch(state.objective_state, context)
    return dataclasses.replace(state, epoch=state.epoch + 1, objective_state=objective_state)
