"""Rates by layer, for fine-tuning: how deep each part of a network lies, found from its forward."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from piat_jax.core.checks import check_range
from piat_jax.core.types import Model, PyTree, Variables
from piat_jax.programs.jaxprs import inner_jaxprs


def layer_scales(model: Model, variables: Variables, image_shape: tuple[int, ...], layer_decay: float) -> PyTree:
    """`layer_decay ** (parts above)` for each parameter: 1 for the head, less the nearer a part lies to the images.

    Parts are the modules at the top of the tree of parameters, in the order in which the forward uses them. A parameter
    of the network itself, such as a class token, counts with the part before it.

    Args:
      model: the model.
      variables: its weights and state, or their shapes.
      image_shape: `(H, W, C)`.
      layer_decay: in (0, 1]; 0.75 of 12 blocks leaves the first 3 % of the rate.

    Returns:
      A tree of floats like the weights.

    Source: layer-wise learning rate decay as in BEiT, Bao et al. (2022), arXiv:2106.08254, which counts all embeddings
    as one part, and the last norm with the head.
    """
    check_range("layer_decay", layer_decay, 0, 1, open_low=True)

    def forward(params: PyTree, model_state: PyTree) -> Any:
        return model.apply(params, model_state, jnp.zeros((1, *image_shape)), train=False)[0]

    leaves = jax.tree_util.tree_flatten_with_path(variables.params)[0]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tuple(variables))
    traced = jax.make_jaxpr(forward)(*shapes).jaxpr
    numbers = dict(zip(traced.invars, range(len(leaves))))  # the weights come first
    order = _first_uses(traced, numbers)
    top = _depth_of_parts([path for path, _ in leaves])
    depths, parts = {}, {}
    for number in order:
        path = leaves[number][0]
        if len(path) > top + 1:
            parts.setdefault(str(path[top]), len(parts))
            depths[number] = parts[str(path[top])]
        else:
            depths[number] = max(len(parts) - 1, 0)
    last = max(len(parts) - 1, 0)
    factors = [layer_decay ** (last - depths.get(number, last)) for number in range(len(leaves))]
    return jax.tree.unflatten(jax.tree.structure(variables.params), factors)


def _first_uses(jaxpr: Any, numbers: dict[Any, int]) -> list[int]:
    """The inputs of a program by their numbers, in the order in which it first uses them."""
    found: dict[int, None] = {}
    for equation in jaxpr.eqns:
        inner = next((each for each in inner_jaxprs(equation) if len(each.invars) == len(equation.invars)), None)
        used = [numbers.get(v) if isinstance(v, Var) else None for v in equation.invars]
        if inner is not None:
            inside = {variable: number for variable, number in zip(inner.invars, used) if number is not None}
            found |= dict.fromkeys(_first_uses(inner, inside))
        found |= dict.fromkeys(number for number in used if number is not None)
    return list(found)


def _depth_of_parts(paths: list[Any]) -> int:
    """How far down the tree of parameters its modules are: below names that all paths share."""
    top = 0
    while all(len(path) > top + 1 for path in paths) and len({str(path[top]) for path in paths}) == 1:
        top += 1
    return top
