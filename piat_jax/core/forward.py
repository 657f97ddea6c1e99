"""The way from a model to what an attack sees."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError, check_network
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.types import Array, LogitsFn, Model, Variables

# A collection a caller may add to the model state of a network with attention: `{"keep": bool[attention_blocks]}`. A
# block whose gate is closed passes no gradient through its attention branch; what it computes is the same.
ATTENTION_GATES = "attention_gates"


def make_logits_fn(model: Model, variables: Variables, *, train: bool = False) -> LogitsFn:
    """A function of images alone; with `train` BatchNorm uses batch statistics, and their update is discarded.

    Nothing is drawn at random, so what an attack sees stays the same network from step to step.

    It is a pytree of the weights: as an argument of a jitted function, other weights do not compile anew.
    """
    return _Forward(model, variables, train)


def as_argument(logits_fn: Any) -> Any:
    """The function as an argument of a jitted one: a pytree of arrays as it is, any other as a constant in one.

    Raises:
      InputError: it cannot be called.
    """
    check_network(logits_fn)
    whole = all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(logits_fn))
    return logits_fn if whole else jax.tree_util.Partial(logits_fn)


def forward_keys(model: Model, key: Array, indices: Array, name: str) -> Array | None:
    """The key of each image for a forward in training mode, `[B]`; None where the network draws nothing.

    Args:
      model: the network; `draws` says whether it draws.
      key: the step's.
      indices: `[B]`, the examples' own: neither the batch nor the devices it is on play a part.
      name: of the forward, such as "adversarial"; forwards of one name draw alike.
    """
    if not getattr(model, "draws", False):
        return None
    return example_keys(named_key(key, f"forward {name}"), indices)


def num_classes(model: Model, variables: Variables, images: Array | jax.ShapeDtypeStruct) -> int:
    """How many classes the model's logits have; nothing is computed.

    Args:
      model: the model.
      variables: any of its weights, or their shapes.
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
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def forward(variables: Variables, image: Array) -> Array:
        return model.apply(*variables, image, train=False)[0]

    with jax.default_matmul_precision("highest"):  # else Winograd's are counted, of which there are fewer
        cost: Any = jax.jit(forward).lower(variables, image).cost_analysis()
    return float(cost["flops"])


def with_attention_gates(logits_fn: LogitsFn, keep: Array) -> LogitsFn:
    """The forward of `make_logits_fn` with these gates, `[attention_blocks]`: equal logits, less of their gradient."""
    if not isinstance(logits_fn, _Forward):
        raise InputError("gates belong to the forward of a model; give what make_logits_fn returns")
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
