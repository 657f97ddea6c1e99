"""A second network that learns alongside the model, with its own SGD, in the objective's state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError
from piat_jax.core.types import Array, Context, PyTree, Variables


class Learner(NamedTuple):
    """A network and the momentum of its SGD."""

    params: PyTree
    model_state: PyTree
    momentum: PyTree

    @property
    def variables(self) -> Variables:
        """Its weights and statistics."""
        return Variables(self.params, self.model_state)


def learner(variables: Variables) -> Learner:
    """A learner before its first step, with momentum 0."""
    return Learner(*variables, jax.tree.map(jnp.zeros_like, variables.params))


def learned(
    before: Learner,
    gradient: PyTree,
    model_state: PyTree,
    rate: Array,
    momentum: Array | float,
    weight_decay: Array | float,
) -> Learner:
    """The learner after a step `v <- momentum v + g + weight_decay w`, `w <- w - rate v`, with new statistics.

    >>> step = learned(learner(Variables(jnp.ones(()), ())), jnp.ones(()), (), jnp.float32(0.5), 0.9, 1.0)
    >>> step.params.item(), step.momentum.item()
    (0.0, 2.0)
    """
    velocity = jax.tree.map(
        lambda v, g, w: momentum * v + g + weight_decay * w, before.momentum, gradient, before.params
    )
    return Learner(jax.tree.map(lambda w, v: w - rate * v, before.params, velocity), model_state, velocity)


def learning_rate(name: str, context: Context, params: PyTree) -> Array:
    """The run's learning rate at this step: the length of a trial step from 0, per unit of gradient length.

    Args:
      name: the method's name, for the error message.
      context: the context of a training step.
      params: weights of the model, for their shapes.

    Raises:
      InputError: the context has no optimizer.
    """
    if context.trial_step is None:
        raise InputError(f"{name} needs the learning rate of the run's optimizer; set context.trial_step")
    zeros = jax.tree.map(jnp.zeros_like, params)
    leaves, structure = jax.tree.flatten(zeros)
    # Short, so that optimizers with gradient clipping do not clip it.
    length = 2.0**-10
    first = leaves[0].ravel().at[0].set(length).reshape(leaves[0].shape)
    gradient = structure.unflatten([first, *leaves[1:]])
    return -jax.tree.leaves(context.trial_step(gradient, zeros, zeros))[0].ravel()[0] / length
