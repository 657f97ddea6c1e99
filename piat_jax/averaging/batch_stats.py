"""Re-estimation of BatchNorm's running statistics, because averaged weights never saw the data."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from piat_jax.averaging.interpolation import interpolate
from piat_jax.core.checks import InputError, check_range, described
from piat_jax.core.pixels import to_float
from piat_jax.core.types import Array, Model, PyTree, Variables


def recompute_batch_stats(
    model: Model, variables: Variables, images: Array, *, momentum: float = 0.9, key: Array | None = None
) -> Variables:
    """Running statistics for fixed weights: the mean over batches of each batch's mean and variance.

    A forward in training mode gives `running' = momentum * running + (1 - momentum) * batch`; started at zero and
    divided by `1 - momentum`, this is the batch's statistic. Use it after averaging weights if the statistics were not
    averaged too, and always for SWA.

    Args:
      model: its state holds the running statistics under "batch_stats" (Flax's name). Other state is not changed.
      variables: the weights, and a state of which only the structure matters.
      images: `[N, B, H, W, C]`, N batches like those of training, floats in [0, 1] or uint8. After adversarial
        training, give adversarial images to keep the statistics of training.
      momentum: the model's BatchNorm momentum, 0.9 in this library; another value scales all statistics wrongly.
      key: for models that draw at random in training mode.

    Returns:
      The same weights with the new statistics. Without any state (no BatchNorm), the unchanged variables.

    Raises:
      InputError: a Flax module in place of a `Model`, variables that are not a pair; images that are not N >= 1 batches
        of floats or uint8, a momentum outside [0, 1), or a state without "batch_stats".

    References:
      Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization" (SWA), 2018, Section 3.2.

    >>> class Mean:  # the part of BatchNorm that matters here
    ...     def apply(self, params, model_state, images, *, train, key=None):
    ...         running = model_state["batch_stats"]["mean"]
    ...         return images, {"batch_stats": {"mean": 0.9 * running + 0.1 * images.mean()}}
    >>> images = jnp.stack([jnp.zeros((2, 4, 4, 3)), jnp.ones((2, 4, 4, 3))])
    >>> stale = Variables({}, {"batch_stats": {"mean": jnp.array(7.0)}})
    >>> fresh = recompute_batch_stats(Mean(), stale, images)
    >>> round(fresh.model_state["batch_stats"]["mean"].item(), 3)
    0.5
    """
    if not isinstance(variables, tuple) or len(variables) != 2:
        raise InputError(f"variables is {described(variables)}; give Variables(params, model_state)")
    if any(kind.__module__.startswith("flax.") for kind in type(model).__mro__):
        name = type(model).__name__
        raise InputError(
            f"model is the Flax module {name}; give piat_jax.models.LinenModel(module), or for NNX an object whose "
            "apply(params, model_state, images, train=True, key=None) merges and splits it"
        )
    if images.ndim != 5 or not images.shape[0]:
        raise InputError(f"images has shape {images.shape}; give N >= 1 batches [N, batch, height, width, channels]")
    if not jnp.issubdtype(images.dtype, jnp.floating) and images.dtype != jnp.uint8:
        raise InputError(f"images has dtype {images.dtype}; give floats in [0, 1], or uint8")
    check_range("momentum", momentum, 0, 1)
    if momentum == 1:
        raise InputError("momentum=1 never updates the statistics; give the model's momentum, below 1")
    params, state = variables
    if not jax.tree.leaves(state):
        return variables
    if not isinstance(state, Mapping) or "batch_stats" not in state:
        raise InputError('model_state has no "batch_stats" to recompute')
    zeros = jax.tree.map(jnp.zeros_like, state["batch_stats"])

    def add_batch(mean: PyTree, numbered: tuple[Array, Array]) -> tuple[PyTree, None]:
        n, batch = numbered
        if batch.dtype == jnp.uint8:
            batch = to_float(batch)
        batch_key = None if key is None else jax.random.fold_in(key, n)
        _, updated = model.apply(params, {**state, "batch_stats": zeros}, batch, train=True, key=batch_key)
        stats = jax.tree.map(lambda s: s / (1 - momentum), updated["batch_stats"])
        # The mean of n + 1 values is n / (n + 1) times the mean of the first n, plus 1 / (n + 1) times the new value.
        return interpolate(mean, stats, n / (n + 1)), None

    mean, _ = jax.lax.scan(add_batch, zeros, (jnp.arange(images.shape[0]), images))
    return Variables(params, {**state, "batch_stats": mean})
