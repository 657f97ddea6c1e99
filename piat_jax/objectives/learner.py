"""A second network that learns beside the model, by an SGD of its own in the objective's state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError
from piat_jax.core.types import Array, Context, PyTree, Variables


class Learner(NamedTuple):
    """A network, and the momentum of its SGD."""

    params: PyTree
    model_state: PyTree
    momentum: PyTree

    @property
    def variables(self) -> Variables:
        """Its weights and statistics."""
        return Variables(self.params, self.model_state)


def learner(variables: Variables) -> Learner:
    """A network that has not learned yet."""
    return Learner(*variables, jax.tree.map(jnp.zeros_like, variables.params))


def learned(
    before: Learner,
    gradient: PyTree,
    model_state: PyTree,
    rate: Array,
    momentum: Array | float,
    weight_decay: Array | float,
) -> Learner:
    """The network after a step `v <- momentum v + g + weight_decay w`, `w <- w - rate v`, with new statistics.

    >>> step = learned(learner(Variables(jnp.ones(()), ())), jnp.ones(()), (), jnp.float32(0.5), 0.9, 1.0)
    >>> step.params.item(), step.momentum.item()
    (0.0, 2.0)
    """
    velocity = jax.tree.map(
        lambda v, g, w: momentum * v + g + weight_decay * w, before.momentum, gradient, before.params
    )
    return Learner(jax.tree.map(lambda w, v: w - rate * v, before.params, velocity), model_state, velocity)


def learning_rate(name: str, context: Context, params: PyTree) -> Array:
    """The run's learning rate at this step: how far a trial step goes from 0 on a gradient, per unit of its length.

    Args:
      name: of the method, for its error.
      context: of a step of a run.
      params: the shape of its weights.

    Raises:
      InputError: there is no optimizer.
    """
    if context.trial_step is None:
        raise InputError(f"{name} takes the learning rate of the run's optimizer; set context.trial_step")
    zeros = jax.tree.map(jnp.zeros_like, params)
    leaves, structure = jax.tree.flatten(zeros)
    # Short, so that an optimizer that clips gradients leaves it as it is.
    length = 2.0**-10
    first = leaves[0].ravel().at[0].set(length).reshape(leaves[0].shape)
    gradient = structure.unflatten([first, *leaves[1:]])
    return -jax.tree.leaves(context.trial_step(gradient, zeros, zeros))[0].ravel()[0] / length
