"""An epoch as one compiled loop over data on the device, run in chunks of steps."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from piat_jax.core.checks import InputError
from piat_jax.core.forward import num_classes
from piat_jax.core.labels import smoothed
from piat_jax.core.pixels import to_float
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.sharding import keep_replicated, keep_state, put_state, replicate, split_batch
from piat_jax.core.types import Array, Batch, Objective, TrainState
from piat_jax.data.augment import augment
from piat_jax.data.batching import as_counts, epoch_order, steps_per_epoch
from piat_jax.programs.jit import program_jit
from piat_jax.training.examples import Examples, on_device
from piat_jax.training.step import FINITE, train_step
from piat_jax.training.stopping import Position, StopTraining
from piat_jax.training.streaming import Stream, Window

StepEnd = Callable[[TrainState], TrainState]
"""`state -> state`, pure and hashable, run after each optimizer step."""


class Recipe(NamedTuple):
    """Settings compiled into the loop; equal recipes with the same optimizer share one compilation.

    Args:
      optimizer: any optax optimizer.
      batch_size: examples per step; the last partial batch of an epoch is dropped.
      crop_padding, padding_mode, flip, policy, policy_operations, policy_magnitude, cutout, erasing: as in
        `data.augment.augment`.
      step_end: hooks `(state) -> state` to run after each step, such as a weight average.
      mesh: devices that share each batch (core/sharding.py); None for one device.
      extra_per_batch: how many examples of a batch come from `Examples.extra`, or from each of its sets.
      split_state: shard the state too: each device keeps a part of weights, momentum and anchor.
      skip_nonfinite: skip steps whose loss or gradient is not finite, instead of stopping.
      microbatches: number of equal parts of a batch to process one after the other, as in `train_step`.
      extra_smoothing: the share of a generated example's label to spread over classes, or one share per set. With (),
        batches have labels only; else loss and attack receive probabilities (`Batch.targets`).
      smoothing_over: over which classes, as in `core.labels.smoothed`.
      epoch_steps: number of steps per epoch; 0 = the full batches of the training set.
    """

    optimizer: optax.GradientTransformation
    batch_size: int
    crop_padding: int = 0
    padding_mode: str = "zeros"
    flip: bool = False
    step_end: tuple[StepEnd, ...] = ()
    mesh: Mesh | None = None
    policy: str = ""
    cutout: int = 0
    extra_per_batch: int | tuple[int, ...] = 0
    split_state: bool = False
    skip_nonfinite: bool = False
    microbatches: int = 1
    extra_smoothing: tuple[float, ...] = ()
    smoothing_over: str = "others"
    epoch_steps: int = 0
    policy_operations: int = 2
    policy_magnitude: int = 9
    erasing: float = 0.0

    def steps(self, num_examples: int) -> int:
        """The number of steps per epoch with `num_examples` training examples."""
        return steps_per_epoch(num_examples, self.batch_size, self.epoch_steps)


class ChunkRecord(NamedTuple):
    """The record of a chunk of steps."""

    steps: Array  # int32, number of steps done
    metrics: dict[str, Array]  # [S] each, for an epoch of S steps, filled at the chunk's steps


class TrainingDivergedError(InputError):
    """The loss or its gradient became infinite or NaN; `state` is from before the step, `report` describes the step."""

    def __init__(self, message: str, state: TrainState, position: Position, report: Mapping[str, Any]):
        super().__init__(message)
        self.state, self.position, self.report = state, position, report


@program_jit(static_argnames="recipe", donate_argnames="state")
def train_steps(
    state: TrainState,
    objective: Objective,
    examples: Examples | Window,
    key: Array,
    start: Array,
    stop: Array,
    epochs: Array,
    *,
    recipe: Recipe,
) -> tuple[TrainState, ChunkRecord]:
    """Run steps `start` to `stop - 1` of epoch `state.epoch` in one compiled loop; `state` is donated.

    Permutation, augmentation and attack all run inside the loop. A step whose loss or gradient is not finite does not
    change the state; it ends the loop, or is skipped with `skip_nonfinite`. `start` and `stop` are traced, so chunks of
    any length share one compilation.
    """
    order = _order(key, state.epoch, examples, objective, recipe)
    augment_key = jax.random.fold_in(named_key(key, "augment"), state.epoch)
    steps = recipe.steps(examples.count)

    # One trace serves both the shapes of the metrics and the loop.
    @functools.partial(jax.jit, inline=True)
    def step(state: TrainState, number: Array) -> tuple[TrainState, dict[str, Array]]:
        images, labels, indices = examples.take(order, number, recipe.batch_size, recipe.extra_per_batch)
        if objective.views > 1:
            # Each view of an example has its own index, because all randomness derives from indices.
            views = [indices + view * (examples.count + examples.extra_count) for view in range(objective.views)]
            images, labels, indices = (
                jnp.concatenate([images] * len(views)),
                jnp.tile(labels, len(views)),
                jnp.concatenate(views),
            )
        images = augment(
            images,
            example_keys(augment_key, indices),
            crop_padding=recipe.crop_padding,
            padding_mode=recipe.padding_mode,
            flip=recipe.flip,
            policy=recipe.policy,
            policy_operations=recipe.policy_operations,
            policy_magnitude=recipe.policy_magnitude,
            cutout=recipe.cutout,
            erasing=recipe.erasing,
        )
        batch = Batch(to_float(images), labels, indices)
        if any(recipe.extra_smoothing):
            batch = batch._replace(targets=_targets(batch, objective, state, recipe))
        batch = split_batch(batch, recipe.mesh)
        if recipe.split_state:
            # Gather once per step: an attack uses the weights many times and would gather them each time.
            params, model_state = keep_replicated((state.params, state.model_state), recipe.mesh)
            state = dataclasses.replace(state, params=params, model_state=model_state)
        state, metrics = train_step(
            objective,
            recipe.optimizer,
            state,
            batch,
            key=key,
            epochs=epochs,
            steps_per_epoch=steps,
            microbatches=recipe.microbatches,
        )
        for hook in recipe.step_end:
            state = hook(state)
        return state, dict(metrics)

    def unfinished(carry: tuple[Array, Array, TrainState, dict[str, Array]]) -> Array:
        number, go_on, *_ = carry
        return (number < stop) & go_on

    def advance(
        carry: tuple[Array, Array, TrainState, dict[str, Array]],
    ) -> tuple[Array, Array, TrainState, dict[str, Array]]:
        number, _, before, seen = carry
        after, metrics = step(before, number)
        finite = metrics[FINITE] = metrics.get(FINITE, True) & jnp.isfinite(metrics["loss"])
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
        if recipe.skip_nonfinite:
            # Schedules advance in skipped steps too: step counts, here and in the optimizer's state, are integers.
            counted = jax.tree.map(
                lambda new, kept: new if jnp.issubdtype(new.dtype, jnp.integer) else kept,
                after.opt_state,
                state.opt_state,
            )
            state = dataclasses.replace(state, step=after.step, opt_state=counted)
        seen = {name: values.at[number].set(metrics[name]) for name, values in seen.items()}
        state = keep_state(state, recipe.mesh, split=recipe.split_state)
        return number + 1, finite | recipe.skip_nonfinite, state, seen

    shapes = {FINITE: jax.ShapeDtypeStruct((), bool), **jax.eval_shape(step, state, start)[1]}
    seen = {name: jnp.zeros((steps, *value.shape), value.dtype) for name, value in shapes.items()}
    number, _, state, seen = jax.lax.while_loop(unfinished, advance, (start, jnp.array(True), state, seen))
    # Once more for arrays over positions in the batch (Free-AT), which XLA would return sharded.
    state = keep_state(state, recipe.mesh, split=recipe.split_state)
    return state, keep_replicated(ChunkRecord(number - start, seen), recipe.mesh)


def run_epoch(
    state: TrainState,
    objective: Objective,
    examples: Examples | Stream,
    *,
    key: Array,
    recipe: Recipe,
    epochs: int,
    steps_per_chunk: int,
    seconds_per_chunk: float = math.inf,
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
    position: Position | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, dict[str, float]]:
    """Train one epoch, in chunks of steps whose length does not affect the result.

    Args:
      state: donated.
      objective: the method.
      examples: the training data: uint8 images and labels as NumPy or JAX arrays, or a `Stream` from the host. Arrays
        that are not on the device are checked and moved there at every call.
      key: the run's key.
      recipe: the settings compiled into the loop.
      epochs: number of epochs of the run.
      steps_per_chunk: the most steps between two checks of the loss.
      seconds_per_chunk: about the most time between two checks, if a step takes less.
      on_chunk: called as `on_chunk(steps done, steps in the epoch)` after each chunk.
      position: where in the epoch to continue; default its beginning.
      should_stop: called after each chunk.

    Returns:
      The state after the epoch, and each metric's mean over its steps. With `skip_nonfinite` the mean is over the steps
      that were not skipped, and "skipped_steps" counts the others.

    Raises:
      TrainingDivergedError: the loss or the gradient of a step was not finite.
      StopTraining: `should_stop` returned true.
      InputError: examples other than described above, or labels that are not classes of the model.
    """
    if isinstance(examples, Examples) and not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(examples)):
        examples = on_device(examples, objective, state, recipe.mesh)
    if isinstance(examples, Stream):
        examples.check(recipe.batch_size, recipe.extra_per_batch, recipe.epoch_steps)
    total = recipe.steps(examples.count)
    at = position or Position(int(state.epoch) + 1)
    before, began = at.seconds, time.perf_counter()
    # Python numbers would be transferred to the device at every call.
    objective = jax.tree.map(jnp.asarray, objective)
    objective, examples, key = replicate((objective, examples, key), recipe.mesh)
    state = put_state(state, recipe.mesh, split=recipe.split_state)
    # Only the end of an epoch uses the anchor, so the loop is the same program with and without PIAT.
    anchor, state = state.anchor, dataclasses.replace(state, anchor=None)
    length = steps_per_chunk if math.isinf(seconds_per_chunk) else 1
    while at.steps < total:
        chunk_began = time.perf_counter()
        part, end = examples.window(key, at.epoch - 1, at.steps) if isinstance(examples, Stream) else (examples, total)
        stop = min(at.steps + length, end)
        numbers = replicate((jnp.int32(at.steps), jnp.int32(stop), jnp.int32(epochs)), recipe.mesh)
        state, chunk = train_steps(state, objective, part, key, *numbers, recipe=recipe)
        chunk = jax.device_get(chunk)
        start, at = at.steps, _count(at, chunk)
        at = at._replace(seconds=before + time.perf_counter() - began)
        whole = dataclasses.replace(state, anchor=anchor)
        if not recipe.skip_nonfinite and at.counted < at.steps:
            raise _diverged(
                whole, at, chunk, total, _order(key, state.epoch, examples, objective, recipe), recipe.batch_size
            )
        on_chunk(at.steps, total)
        if at.steps < total and should_stop():
            raise StopTraining(whole, at)
        taken = time.perf_counter() - chunk_began
        if not math.isinf(seconds_per_chunk):
            length = max(1, min(steps_per_chunk, int((at.steps - start) * seconds_per_chunk / max(taken, 1e-9))))
    if not at.counted:
        raise InputError(f"every step of epoch {at.epoch} was skipped: no loss was finite; lower the learning rate")
    means = {name: value / at.counted for name, value in at.metrics.items()}
    skipped = {"skipped_steps": float(at.steps - at.counted)} if recipe.skip_nonfinite else {}
    return dataclasses.replace(state, anchor=anchor), {**means, **skipped}


def _order(
    key: Array, epoch: Array, examples: Examples | Window | Stream, objective: Objective, recipe: Recipe
) -> Array:
    """The order of the epoch's examples."""
    shuffled = jax.random.fold_in(named_key(key, "shuffle"), epoch)
    counts = (examples.count, recipe.batch_size, examples.extra_counts, recipe.extra_per_batch)
    replays = getattr(objective, "replays", 1)
    return epoch_order(shuffled, *counts, replays=replays, epoch_steps=recipe.epoch_steps)


def _targets(batch: Batch, objective: Objective, state: TrainState, recipe: Recipe) -> Array:
    """The labels as probabilities `[B, K]`, smoothed for generated examples."""
    shares = as_counts(recipe.extra_per_batch)
    smoothing = recipe.extra_smoothing * (len(shares) if len(recipe.extra_smoothing) == 1 else 1)
    own = [0.0] * (recipe.batch_size - sum(shares))
    of_each = np.array(own + [each for each, share in zip(smoothing, shares, strict=True) for _ in range(share)])
    of_views = np.tile(of_each, len(batch.labels) // recipe.batch_size)[:, None]
    classes = num_classes(objective.model, state.variables, batch.images)
    return smoothed(batch.labels, classes, jnp.asarray(of_views, jnp.float32), recipe.smoothing_over)


def _count(at: Position, chunk: ChunkRecord) -> Position:
    """The position after a chunk; metrics are summed step by step, so that chunk lengths do not change the sums."""
    numbers = range(at.steps, at.steps + int(chunk.steps))
    finite = chunk.metrics[FINITE]
    sums = dict(at.metrics)
    for name, values in chunk.metrics.items():
        if name != FINITE:
            for number in numbers:
                sums[name] = sums.get(name, 0.0) + (float(values[number]) if finite[number] else 0.0)
    counted = at.counted + sum(bool(finite[number]) for number in numbers)
    return at._replace(steps=numbers.stop, counted=counted, metrics=sums)


def _diverged(
    state: TrainState, at: Position, chunk: ChunkRecord, total: int, order: Array, batch_size: int
) -> TrainingDivergedError:
    """The error for the last step of a chunk, with the position before the step."""
    number = at.steps - 1
    values = {name: float(value[number]) for name, value in chunk.metrics.items() if name != FINITE}
    bad = [f"{name} {value}" for name, value in values.items() if name != "loss" and not math.isfinite(value)]
    loss = values["loss"]
    what = f"the gradient or the new state was not finite at a loss of {loss:.4g}"
    if not math.isfinite(loss):
        what = f"the loss became {loss}" + (f" with {', '.join(bad)}" if bad else "")
    indices = [int(index) for index in order[number * batch_size : at.steps * batch_size]]
    shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
    return TrainingDivergedError(
        f"{what} at step {int(state.step) + 1} (epoch {at.epoch}, step {at.steps} of {total}, images {shown}); "
        "lower the learning rate",
        state,
        at._replace(steps=number),
        {"epoch": at.epoch, "step": at.steps, "what": what, "metrics": values, "images": indices},
    )
