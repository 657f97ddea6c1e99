"""A whole epoch as one compiled loop over data that lives on the device, run in chunks of steps."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from piat_jax.core.checks import InputError
from piat_jax.core.compiler import OuterJit
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.sharding import keep_replicated, replicate, split_batch
from piat_jax.core.types import Array, Batch, Objective, TrainState
from piat_jax.data.augment import augment, to_float
from piat_jax.data.batching import epoch_permutation, steps_per_epoch, take_batch
from piat_jax.training.step import train_step

StepEnd = Callable[[TrainState], TrainState]
"""`state -> state`, pure and hashable, run after each optimizer step."""


class Recipe(NamedTuple):
    """What is compiled into the loop; equal recipes with the same optimizer share one compilation."""

    optimizer: optax.GradientTransformation
    batch_size: int
    crop_padding: int = 0
    padding_mode: str = "zeros"
    flip: bool = False
    step_end: tuple[StepEnd, ...] = ()  # what follows each step, such as an average of the weights
    mesh: Mesh | None = None  # devices that share each batch (core/sharding.py); None for one


class Examples(NamedTuple):
    """Training data on the device."""

    images: Array  # [N, H, W, C] uint8
    labels: Array  # [N] int32


class Sums(NamedTuple):
    """Metrics of the steps so far, summed on the device."""

    steps: Array  # int32
    metrics: dict[str, Array]


class TrainingDivergedError(InputError):
    """The loss became infinite or NaN."""


@functools.partial(OuterJit, static_argnames="recipe", donate_argnames="state")
def train_steps(
    state: TrainState,
    objective: Objective,
    examples: Examples,
    key: Array,
    start: Array,
    stop: Array,
    epochs: Array,
    *,
    recipe: Recipe,
) -> tuple[TrainState, Sums]:
    """Steps `start` to `stop - 1` of epoch `state.epoch`, in one compiled loop; `state` is donated.

    The permutation, the augmentation and the attack all happen inside. The loop ends early after a step whose loss is
    not finite. `start` and `stop` are traced: chunks of any length share one compilation.
    """
    order = epoch_permutation(jax.random.fold_in(named_key(key, "shuffle"), state.epoch), examples.labels.shape[0])
    augment_key = jax.random.fold_in(named_key(key, "augment"), state.epoch)
    steps = steps_per_epoch(examples.labels.shape[0], recipe.batch_size)

    def step(state: TrainState, number: Array) -> tuple[TrainState, dict[str, Array]]:
        images, labels, indices = take_batch(*examples, order, number, recipe.batch_size)
        if objective.views > 1:
            # An index of its own for each view of an example: all that is random derives from it.
            views = [indices + view * examples.labels.shape[0] for view in range(objective.views)]
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
        )
        batch = split_batch(Batch(to_float(images), labels, indices), recipe.mesh)
        state, metrics = train_step(
            objective, recipe.optimizer, state, batch, key=key, epochs=epochs, steps_per_epoch=steps
        )
        for hook in recipe.step_end:
            state = hook(state)
        return keep_replicated(state, recipe.mesh), dict(metrics)

    def unfinished(carry: tuple[Array, TrainState, dict[str, Array]]) -> Array:
        number, _, sums = carry
        return (number < stop) & jnp.isfinite(sums["loss"])

    def advance(carry: tuple[Array, TrainState, dict[str, Array]]) -> tuple[Array, TrainState, dict[str, Array]]:
        number, state, sums = carry
        state, metrics = step(state, number)
        return number + 1, state, jax.tree.map(jnp.add, sums, metrics)

    shapes = jax.eval_shape(step, state, start)[1]
    zeros = {name: jnp.zeros(value.shape, value.dtype) for name, value in shapes.items()}
    number, state, sums = jax.lax.while_loop(unfinished, advance, (start, state, zeros))
    return state, Sums(number - start, sums)


def run_epoch(
    state: TrainState,
    objective: Objective,
    examples: Examples,
    *,
    key: Array,
    recipe: Recipe,
    epochs: int,
    steps_per_chunk: int,
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TrainState, dict[str, float]]:
    """One epoch, in chunks of `steps_per_chunk` steps.

    Args:
      state: donated.
      objective: the method.
      examples: the training data.
      key: the run's key.
      recipe: what is compiled in.
      epochs: how many the run has.
      steps_per_chunk: steps between two looks at the loss.
      on_chunk: called as `on_chunk(steps done, steps in the epoch)` after each chunk.

    Returns:
      The state after the epoch, and each metric's mean over its steps.

    Raises:
      TrainingDivergedError: the loss of a step was not finite.
    """
    total = steps_per_epoch(examples.labels.shape[0], recipe.batch_size)
    # Python numbers would go to the device anew at every call.
    objective = jax.tree.map(jnp.asarray, objective)
    objective, state, examples, key = replicate((objective, state, examples, key), recipe.mesh)
    sums: dict[str, float] = {}
    # Only the epoch's end looks at the anchor: with and without PIAT the loop is the same program.
    anchor, state = state.anchor, dataclasses.replace(state, anchor=None)
    for start in range(0, total, steps_per_chunk):
        stop = min(start + steps_per_chunk, total)
        numbers = replicate((jnp.int32(start), jnp.int32(stop), jnp.int32(epochs)), recipe.mesh)
        with jax.transfer_guard("disallow"):
            state, chunk = train_steps(state, objective, examples, key, *numbers, recipe=recipe)
        chunk = jax.device_get(chunk)
        if not math.isfinite(chunk.metrics["loss"]):
            raise TrainingDivergedError(
                f"the loss became {chunk.metrics['loss']} at step {int(state.step)} (epoch {int(state.epoch) + 1}, "
                f"step {start + int(chunk.steps)} of {total}); lower the learning rate"
            )
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in chunk.metrics.items()}
        on_chunk(start + int(chunk.steps), total)
    return dataclasses.replace(state, anchor=anchor), {name: value / total for name, value in sums.items()}
