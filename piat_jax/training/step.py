"""One training step of any objective: craft, differentiate, update."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from piat_jax.averaging.piat import without_momentum
from piat_jax.core.rng import named_key
from piat_jax.core.trees import copied
from piat_jax.core.types import Array, Batch, Context, Objective, PyTree, TrainState, Variables
from piat_jax.objectives.parts import check_parts, joined, loss_gradient, perturbed

FINITE = "finite"
"""The metric of a step that says whether its gradient and the new state are finite."""


def init_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    images: Array,
    *,
    key: Array,
    variables: Variables | None = None,
) -> TrainState:
    """The state before the first step; only the shape of `images[B, H, W, C]` matters, B as in a step for Free-AT.

    Training starts from `variables` if given (pretrained weights), else from new ones. The objective's state is copied
    into its own buffers, so an objective may return one array in two places, or the weights themselves.
    """
    variables = variables or objective.model.init(named_key(key, "init"), images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        epoch=jnp.zeros((), jnp.int32),
        params=variables.params,
        model_state=variables.model_state,
        opt_state=jax.jit(optimizer.init)(variables.params),  # one program instead of one per shape
        objective_state=copied(objective.init(variables, images, key=named_key(key, "objective"))),
    )


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    *,
    key: Array,
    epochs: Array | int,
    steps_per_epoch: Array | int = 1,
    microbatches: int = 1,
) -> tuple[TrainState, Mapping[str, Array]]:
    """One training step, a pure function for the caller to jit.

    Args:
      objective: the method; its attack runs on the current weights, and no gradient flows through it.
      optimizer: any optax transformation.
      state: the current state.
      batch: clean images and labels, with `objective.views` augmentations of each example, one view after the other.
      key: the run's key; the step's key derives from it and `state.step`, so that a resumed run draws the same.
      epochs: number of epochs of the run, traced or not; methods' schedules use the share that has passed.
      steps_per_epoch: optimizer steps per epoch, traced or not, for schedules that change with each step (A&P); with 1
        they change once per epoch.
      microbatches: gradient accumulation: the number of equal parts of the batch that are attacked, and then
        differentiated, one after the other. Activations take the memory of one part; the gradient is the full batch's.
        BatchNorm in training mode uses each part's statistics and updates its running statistics once per part.

    Returns:
      The next state, and the objective's metrics (scalars) with "finite": whether the gradient and the next state are
      finite.

    Raises:
      InputError: the batch cannot be split into such parts, or the method's examples depend on each other.
    """
    check_parts(objective, batch.labels.shape[0] // objective.views, microbatches)
    context = Context(
        jax.random.fold_in(named_key(key, "step"), state.step),
        state.step,
        state.epoch,
        jnp.asarray(epochs, jnp.int32),
        steps_per_epoch=jnp.asarray(steps_per_epoch, jnp.int32),
        trial_step=jax.tree_util.Partial(functools.partial(_trial_step, optimizer), state.opt_state),
    )
    adversarial = perturbed(objective, state.variables, state.objective_state, batch, context, microbatches)
    weights = objective.perturb_weights(state.params, state.model_state, state.objective_state, adversarial, context)
    gradient, aux = loss_gradient(objective, weights, state.model_state, state.objective_state, adversarial, context)
    adversarial = joined(objective, state.variables, state.objective_state, adversarial, context)
    # The update is computed at the perturbed weights but added to w, so the perturbation does not stay in w.
    updates, opt_state = optimizer.update(gradient, state.opt_state, weights)
    variables = Variables(optax.apply_updates(state.params, updates), aux.model_state)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=variables.params,
        model_state=variables.model_state,
        opt_state=opt_state,
        objective_state=objective.after_step(variables, state.objective_state, adversarial, aux, context),
    )
    if (following := getattr(objective, "next_variables", None)) is not None:
        params, model_state = following(variables, state.objective_state, context)
        state = dataclasses.replace(state, params=params, model_state=model_state)
    return state, {**aux.metrics, FINITE: _all_finite((gradient, state))}


def _trial_step(
    optimizer: optax.GradientTransformation, opt_state: PyTree, gradient: PyTree, weights: PyTree, params: PyTree
) -> PyTree:
    updates, _ = optimizer.update(gradient, without_momentum(opt_state), weights)
    return optax.apply_updates(params, updates)


def _all_finite(tree: PyTree) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all() if leaves else jnp.array(True)
