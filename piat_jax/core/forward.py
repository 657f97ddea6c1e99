"""The way from a model to what an attack sees."""

import dataclasses

import jax

from piat_jax.core.types import Array, LogitsFn, Model, Variables


def make_logits_fn(model: Model, variables: Variables, *, train: bool = False) -> LogitsFn:
    """A function of images alone; with `train` BatchNorm uses batch statistics, and their update is discarded.

    It is a pytree of the weights: as an argument of a jitted function, other weights do not compile anew.
    """
    return _Forward(model, variables, train)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Forward:
    model: Model = dataclasses.field(metadata={"static": True})
    variables: Variables
    train: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, images: Array) -> Array:
        return self.model.apply(self.variables.params, self.variables.model_state, images, train=self.train)[0]
