"""One training step of any objective: craft, differentiate, update."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from piat_jax.core.rng import named_key
from piat_jax.core.types import Array, Batch, Context, Objective, TrainState


def init_state(
    objective: Objective, optimizer: optax.GradientTransformation, images: Array, *, key: Array
) -> TrainState:
    """The state before the first step; `images[B, H, W, C]` give the shape only."""
    params, model_state = objective.model.init(named_key(key, "init"), images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        epoch=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        objective_state=objective.init(),
        anchor=None,
    )


def train_step(
    objective: Objective, optimizer: optax.GradientTransformation, state: TrainState, batch: Batch, *, key: Array
) -> tuple[TrainState, Mapping[str, Array]]:
    """One step, pure and to be jitted by the caller.

    Args:
      objective: the method; its attack runs on the current weights and is a constant to the gradient.
      optimizer: any optax transformation.
      state: the current state.
      batch: clean images and labels.
      key: the run's key; the step's is derived from it and `state.step`, so that a resumed run draws the same.

    Returns:
      The next state, and the objective's metrics (scalars).
    """
    context = Context(jax.random.fold_in(named_key(key, "step"), state.step), state.epoch)
    adversarial = objective.perturb(state.variables, state.objective_state, batch, context)
    gradient, aux = jax.grad(objective.loss, has_aux=True)(
        state.params, state.model_state, state.objective_state, adversarial, context
    )
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        model_state=aux.model_state,
        opt_state=opt_state,
    )
    return state, aux.metrics
