"""A whole epoch as one compiled loop over data that lives on the device, run in chunks of steps."""

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
    """What is compiled into the loop; equal recipes with the same optimizer share one compilation.

    Args:
      optimizer: any of optax.
      batch_size: examples of a step; the last partial batch of an epoch is dropped.
      crop_padding, padding_mode, flip, policy, policy_operations, policy_magnitude, cutout, erasing: as of
        `data.augment.augment`.
      step_end: what follows each step, such as an average of the weights: `(state) -> state`.
      mesh: devices that share each batch (core/sharding.py); None for one.
      extra_per_batch: how many of a batch are of `Examples.extra`, or of each set of it.
      split_state: share out the state as well: each device keeps a part of weights, momentum and anchor.
      skip_nonfinite: leave steps out whose loss or gradient is not finite, instead of stopping.
      microbatches: equal parts of a batch that are taken one after the other, as of `train_step`.
      extra_smoothing: the share of the label of each generated example that is spread over classes, or one for each
        set; (): the batch has labels alone. Else loss and attack are told probabilities (`Batch.targets`).
      smoothing_over: over which classes, as of `core.labels.smoothed`.
      epoch_steps: how many steps an epoch has; 0 = the whole batches of the training set.
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
        """How many steps an epoch of so many training examples has."""
        return steps_per_epoch(num_examples, self.batch_size, self.epoch_steps)


class ChunkRecord(NamedTuple):
    """What the steps of a chunk were like."""

    steps: Array  # int32, how many were done
    metrics: dict[str, Array]  # [S] each, at the steps' numbers in the epoch of S steps


class TrainingDivergedError(InputError):
    """The loss or its gradient became infinite or NaN; `state` is the one before, `report` says where."""

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
    """Steps `start` to `stop - 1` of epoch `state.epoch`, in one compiled loop; `state` is donated.

    The permutation, the augmentation and the attack all happen inside. A step whose loss or gradient is not finite
    leaves the state as it was and ends the loop, or with `skip_nonfinite` just counts. `start` and `stop` are traced:
    chunks of any length share one compilation.
    """
    order = _order(key, state.epoch, examples, objective, recipe)
    augment_key = jax.random.fold_in(named_key(key, "augment"), state.epoch)
    steps = recipe.steps(examples.count)

    # Traced once: for the shapes of its metrics and for the loop.
    @functools.partial(jax.jit, inline=True)
    def step(state: TrainState, number: Array) -> tuple[TrainState, dict[str, Array]]:
        images, labels, indices = examples.take(order, number, recipe.batch_size, recipe.extra_per_batch)
        if objective.views > 1:
            # An index of its own for each view of an example: all that is random derives from it.
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
            # Once a step: an attack takes the weights many times, and each time they would be sent around.
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
            # Schedules move on: what counts steps does so in whole numbers, here and in the optimizer's state.
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
    # Once more, for what belongs to places in the batch: XLA would hand it out split (Free-AT).
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
    """One epoch, in chunks of steps; how long they are shows nowhere in the result.

    Args:
      state: donated.
      objective: the method.
      examples: the training data: uint8 images and labels of NumPy or JAX, or a `Stream` from the host. What is not on
        the device is checked and moved there first, at every call.
      key: the run's key.
      recipe: what is compiled in.
      epochs: how many the run has.
      steps_per_chunk: the most steps between two looks at the loss.
      seconds_per_chunk: about as much time between them at most, if a step takes less.
      on_chunk: called as `on_chunk(steps done, steps in the epoch)` after each chunk.
      position: where in the epoch to go on; default its beginning.
      should_stop: asked after each chunk.

    Returns:
      The state after the epoch, and each metric's mean over its steps; with `skip_nonfinite` over those that were not
      skipped, and how many were as "skipped_steps".

    Raises:
      TrainingDivergedError: the loss or the gradient of a step was not finite.
      StopTraining: `should_stop` said so.
      InputError: examples that are not what is said above, or labels that are no class of the model.
    """
    if isinstance(examples, Examples) and not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(examples)):
        examples = on_device(examples, objective, state, recipe.mesh)
    if isinstance(examples, Stream):
        examples.check(recipe.batch_size, recipe.extra_per_batch, recipe.epoch_steps)
    total = recipe.steps(examples.count)
    at = position or Position(int(state.epoch) + 1)
    before, began = at.seconds, time.perf_counter()
    # Python numbers would go to the device anew at every call.
    objective = jax.tree.map(jnp.asarray, objective)
    objective, examples, key = replicate((objective, examples, key), recipe.mesh)
    state = put_state(state, recipe.mesh, split=recipe.split_state)
    # Only the epoch's end looks at the anchor: with and without PIAT the loop is the same program.
    anchor, state = state.anchor, dataclasses.replace(state, anchor=None)
    length = steps_per_chunk if math.isinf(seconds_per_chunk) else 1
    while at.steps < total:
        chunk_began = time.perf_counter()
        part, end = examples.window(key, at.epoch - 1, at.steps) if isinstance(examples, Stream) else (examples, total)
        stop = min(at.steps + length, end)
        numbers = replicate((jnp.int32(at.steps), jnp.int32(stop), jnp.int32(epochs)), recipe.mesh)
        with jax.transfer_guard("disallow"):
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
    """The labels as probabilities `[B, K]`, those of generated examples smoothed."""
    shares = as_counts(recipe.extra_per_batch)
    smoothing = recipe.extra_smoothing * (len(shares) if len(recipe.extra_smoothing) == 1 else 1)
    own = [0.0] * (recipe.batch_size - sum(shares))
    of_each = np.array(own + [each for each, share in zip(smoothing, shares, strict=True) for _ in range(share)])
    of_views = np.tile(of_each, len(batch.labels) // recipe.batch_size)[:, None]
    classes = num_classes(objective.model, state.variables, batch.images)
    return smoothed(batch.labels, classes, jnp.asarray(of_views, jnp.float32), recipe.smoothing_over)


def _count(at: Position, chunk: ChunkRecord) -> Position:
    """The position after a chunk. Summed step by step, so that chunks of any length give the same sums."""
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
    """What is said of the last step of a chunk, and the position before it."""
    number = at.steps - 1
    values = {name: float(value[number]) for name, value in chunk.metrics.items() if name != FINITE}
    bad = [f"{name} {value}" for name, value in values.items() if name != "loss" and not math.isfinite(value)]
    loss = values["loss"]
    what = f"the gradient or the state it led to was not finite where the loss was {loss:.4g}"
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
