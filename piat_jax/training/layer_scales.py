"""Layer-wise learning-rate decay for fine-tuning; the depth of each part is found from the network's forward."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from piat_jax.core.checks import check_range
from piat_jax.core.types import Model, PyTree, Variables
from piat_jax.programs.jaxprs import inner_jaxprs

BLOCK, NUMBER = re.compile(r"blocks_(\d+)"), re.compile(r"_\d+$")


def layer_scales(model: Model, variables: Variables, image_shape: tuple[int, ...], layer_decay: float) -> PyTree:
    """`layer_decay ** (parts above)` for each parameter: 1 for the head, smaller for parts nearer to the images.

    Parts are the top-level modules of the parameter tree, in the order in which the forward uses them. A parameter of
    the network itself, such as a class token, belongs to the part before it. Stages are split into their blocks (Swin),
    or into groups of `blocks_per_part` blocks if the model has this attribute (three in ConvNeXt). A downsampling layer
    belongs to the first block of its stage. Numbered modules next to stages count as one part (patches and their norm).

    Args:
      model: the model.
      variables: its weights and state, or their shapes.
      image_shape: `(H, W, C)`.
      layer_decay: in (0, 1]; with 0.75 and 12 blocks the first block has 3 % of the rate.

    Returns:
      A tree of floats like the weights.

    Source: layer-wise learning-rate decay as in BEiT, Bao et al. (2022), arXiv:2106.08254, which counts all embeddings
    as one part, and the last norm with the head. ConvNeXt's stages follow the code of Liu et al. (2022), which has
    twelve parts between stem and head for networks with 3, 3, 27 and 3 blocks. Swin's blocks follow timm.
    """
    check_range("layer_decay", layer_decay, 0, 1, open_low=True)

    def forward(params: PyTree, model_state: PyTree) -> Any:
        return model.apply(params, model_state, jnp.zeros((1, *image_shape)), train=False)[0]

    leaves = jax.tree_util.tree_flatten_with_path(variables.params)[0]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tuple(variables))
    traced = jax.make_jaxpr(forward)(*shapes).jaxpr
    numbers = dict(zip(traced.invars, range(len(leaves))))  # the weights come first
    order = _first_uses(traced, numbers)
    paths = [[jax.tree_util.keystr((key,), simple=True) for key in path] for path, _ in leaves]
    top, together = _depth_of_parts(paths), getattr(model, "blocks_per_part", 1)
    stages = {path[top] for path in paths if len(path) > top + 1 and BLOCK.fullmatch(path[top + 1])}
    depths, parts = {}, {}
    for number in order:
        path = paths[number]
        if len(path) > top + 1:
            part = path[top]
            if part in stages:
                block = BLOCK.fullmatch(path[top + 1])
                part = (part, int(block[1]) // together if block else 0)
            elif stages:
                part = NUMBER.sub("", part)
            depths[number] = parts.setdefault(part, len(parts))
        else:
            depths[number] = max(len(parts) - 1, 0)
    last = max(len(parts) - 1, 0)
    factors = [layer_decay ** (last - depths.get(number, last)) for number in range(len(leaves))]
    return jax.tree.unflatten(jax.tree.structure(variables.params), factors)


def _first_uses(jaxpr: Any, numbers: dict[Any, int]) -> list[int]:
    """The numbers of a program's inputs, in the order of their first use."""
    found: dict[int, None] = {}
    for equation in jaxpr.eqns:
        inner = next((each for each in inner_jaxprs(equation) if len(each.invars) == len(equation.invars)), None)
        used = [numbers.get(v) if isinstance(v, Var) else None for v in equation.invars]
        if inner is not None:
            inside = {variable: number for variable, number in zip(inner.invars, used) if number is not None}
            found |= dict.fromkeys(_first_uses(inner, inside))
        found |= dict.fromkeys(number for number in used if number is not None)
    return list(found)


def _depth_of_parts(paths: list[list[str]]) -> int:
    """The depth of the modules in the parameter tree, below names that all paths share."""
    top = 0
    while all(len(path) > top + 1 for path in paths) and len({path[top] for path in paths}) == 1:
        top += 1
    return top
