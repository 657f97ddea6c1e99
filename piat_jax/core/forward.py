"""The way from a model to what an attack sees."""

from piat_jax.core.types import Array, LogitsFn, Model, Variables


def make_logits_fn(model: Model, variables: Variables, *, train: bool = False) -> LogitsFn:
    """A function of images alone; with `train` BatchNorm uses batch statistics, and their update is discarded."""

    def logits_fn(images: Array) -> Array:
        return model.apply(variables.params, variables.model_state, images, train=train)[0]

    return logits_fn
