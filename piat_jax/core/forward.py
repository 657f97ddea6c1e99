"""From a model to the `logits_fn` that attacks see, and facts about its forward."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.network_checks import check_network
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.types import Array, LogitsFn, Model, Variables

# A collection that a caller may add to the model state of a network with attention: `{"keep": bool[attention_blocks]}`.
# A block with a closed gate passes no gradient through its attention branch; its output does not change.
ATTENTION_GATES = "attention_gates"


def make_logits_fn(model: Model, variables: Variables, *, train: bool = False) -> LogitsFn:
    """The model as a function of images; with `train`, BatchNorm uses batch statistics, and their update is discarded.

    It draws no random numbers, so an attack sees the same network in every step. It is a pytree of the weights: as an
    argument of a jitted function, other weights do not recompile.
    """
    return _Forward(model, variables, train)


def as_argument(logits_fn: Any) -> Any:
    """The function as an argument for a jitted function: a pytree of arrays unchanged, any other as a constant.

    Raises:
      InputError: `logits_fn` is not callable.
    """
    check_network(logits_fn)
    whole = all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(logits_fn))
    return logits_fn if whole else jax.tree_util.Partial(logits_fn)


def forward_keys(model: Model, key: Array, indices: Array, name: str) -> Array | None:
    """The key of each image for a forward in training mode, `[B]`; None if the network draws no random numbers.

    Args:
      model: the network; `draws` says whether it draws.
      key: the step's key.
      indices: `[B]`, the examples' indices, so that keys do not depend on the batch or on devices.
      name: name of the forward, such as "adversarial"; forwards with the same name draw the same numbers.
    """
    if not getattr(model, "draws", False):
        return None
    return example_keys(named_key(key, f"forward {name}"), indices)


def num_classes(model: Model, variables: Variables, images: Array | jax.ShapeDtypeStruct) -> int:
    """The number of classes in the model's logits, from shapes only.

    Args:
      model: the model.
      variables: weights of the model, or their shapes.
      images: `[B, H, W, C]`, or their shape.
    """

    def forward(variables: Variables, images: Array) -> Array:
        return model.apply(*variables, images, train=False)[0]

    return jax.eval_shape(forward, variables, images).shape[-1]


def forward_flop(model: Model, image_shape: Sequence[int]) -> float:
    """Floating-point operations of one image's forward in evaluation mode, as XLA counts them before optimising.

    Args:
      model: the model.
      image_shape: `(H, W, C)`.

    Raises:
      InputError: JAX was told not to use the CPU.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def forward(variables: Variables, image: Array) -> Array:
        return model.apply(*variables, image, train=False)[0]

    try:  # XLA counts before optimising for a CPU alone
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise InputError("operations are counted on a CPU, which JAX_PLATFORMS leaves out: append ,cpu") from error
    # In a lower precision it counts the fewer operations of Winograd.
    with jax.default_device(cpu), jax.default_matmul_precision("highest"):
        cost: Any = jax.jit(forward).lower(variables, image).cost_analysis()
    return float(cost["flops"])


def with_attention_gates(logits_fn: LogitsFn, keep: Array) -> LogitsFn:
    """A forward from `make_logits_fn` with gates `[attention_blocks]`: same logits, but no gradient at closed gates."""
    if not isinstance(logits_fn, _Forward):
        raise InputError("gates need the forward of a model; give the result of make_logits_fn")
    params, model_state = logits_fn.variables
    variables = Variables(params, {**model_state, ATTENTION_GATES: {"keep": keep}})
    return dataclasses.replace(logits_fn, variables=variables)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Forward:
    model: Model = dataclasses.field(metadata={"static": True})
    variables: Variables
    train: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, images: Array) -> Array:
        return self.model.apply(self.variables.params, self.variables.model_state, images, train=self.train)[0]
