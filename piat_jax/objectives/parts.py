"""Gradient accumulation: a compiled loop over equal parts of a batch gives its gradient in the memory of one part."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError, check_count
from piat_jax.core.types import AdversarialBatch, Array, Aux, Batch, Context, Objective, PyTree, Variables
from piat_jax.objectives.base import in_parts, with_fields_of_their_own

Tree = TypeVar("Tree")


def check_parts(objective: Any, batch_size: int, microbatches: int, devices: int = 1) -> None:
    """Raise InputError unless a batch can be split into `microbatches` equal parts, each divided among the devices.

    Args:
      objective: the method.
      batch_size: examples per batch.
      microbatches: number of parts; 1 is always accepted.
      devices: number of devices that share each part.
    """
    check_count("microbatches", microbatches, 1)
    if microbatches == 1:
        return
    part, rest = divmod(batch_size, microbatches)
    if rest:
        raise InputError(f"microbatches={microbatches} does not divide batch_size={batch_size}; give a divisor of it")
    if part % devices:
        raise InputError(
            f"microbatches={microbatches} leaves parts of {part} examples, which {devices} devices cannot share; "
            "give fewer parts or fewer devices"
        )
    groups = getattr(objective.model, "bn_groups", 1)
    if part * objective.views % groups:
        raise InputError(f"bn_groups={groups} does not divide the {part * objective.views} images of a microbatch")
    objective.check_part(part)


def cut(tree: Tree, microbatches: int, *, views: int = 1) -> Tree:
    """Split arrays `[views * B, ...]` into parts `[n, views * B / n, ...]`; `join` is the inverse.

    Each part takes examples from the whole batch, so a batch that is sharded over devices gives sharded parts without
    moving data. A part has all views of its examples. If its size is even, it also has each example's partner in the
    reversed batch (`Mix`).

    >>> cut(jnp.arange(8), 2).tolist()
    [[0, 2, 5, 7], [1, 3, 4, 6]]
    """

    def of_array(x: Array) -> Array:
        return jnp.moveaxis(_mirrored(x.reshape(-1, microbatches, *x.shape[1:]), views), 1, 0)

    return jax.tree.map(of_array, tree)


def join(tree: Tree, *, views: int = 1) -> Tree:
    """The inverse of `cut`.

    >>> join(cut(jnp.arange(8), 2)).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def of_array(x: Array) -> Array:
        return _mirrored(jnp.moveaxis(x, 0, 1), views).reshape(-1, *x.shape[2:])

    return jax.tree.map(of_array, tree)


def _mirrored(rows: Array, views: int) -> Array:
    """`[views * R, n, ...]` with the second half of each view's rows reversed, to match the reversed batch."""
    count = len(rows) // views
    second = jnp.arange(len(rows)) % count >= (count + 1) // 2
    # Selected, not concatenated: concatenating along the sharded axis would move halves between devices.
    return jnp.where(second.reshape(-1, *(1,) * (rows.ndim - 1)), rows[:, ::-1], rows)


def perturbed(
    objective: Objective,
    variables: Variables,
    objective_state: PyTree,
    batch: Batch,
    context: Context,
    microbatches: int,
) -> AdversarialBatch:
    """The adversarial batch; with several `microbatches` in parts: all arrays except the statistics are `[n, ...]`.

    All parts are attacked before the first loss. If crafting forwards in training mode (ECAS), each part continues from
    the running statistics of the previous part.
    """
    if microbatches == 1:
        return objective.perturb(variables, objective_state, batch, context)

    def craft(model_state: PyTree, part: Batch) -> tuple[PyTree, AdversarialBatch]:
        weights = Variables(variables.params, model_state)
        crafted = with_fields_of_their_own(objective.perturb(weights, objective_state, part, context))
        after = model_state if crafted.model_state is None else crafted.model_state
        return after, crafted._replace(model_state=None)

    parts = cut(batch, microbatches, views=objective.views)
    model_state, crafted = jax.lax.scan(craft, variables.model_state, parts)
    return crafted._replace(model_state=model_state)


def loss_gradient(
    objective: Any,
    params: PyTree,
    model_state: PyTree,
    objective_state: PyTree,
    batch: AdversarialBatch,
    context: Context,
) -> tuple[PyTree, Aux]:
    """The gradient of the loss with respect to `params`, and the loss's `Aux`; for use in `perturb_weights` too.

    For a batch in parts, as from `perturbed`, gradient and metrics are means over the parts, which are equal in size.
    Each part continues from the running statistics of the previous part.
    """
    gradient_of = jax.grad(objective.loss, has_aux=True)
    if not in_parts(batch):
        return gradient_of(params, model_state, objective_state, batch, context)

    def add(carry: tuple[PyTree, PyTree], part: AdversarialBatch) -> tuple[tuple[PyTree, PyTree], Any]:
        total, model_state = carry
        gradient, aux = gradient_of(params, model_state, objective_state, part, context)
        return (jax.tree.map(jnp.add, total, gradient), aux.model_state), (aux.metrics, aux.logits)

    start = jax.tree.map(jnp.zeros_like, params), batch.model_state
    (total, model_state), (metrics, logits) = jax.lax.scan(add, start, batch._replace(model_state=None))
    gradient = jax.tree.map(lambda g: g / batch.clean.labels.shape[0], total)
    return gradient, Aux(model_state, _means(metrics), join(logits, views=objective.views))


def joined(
    objective: Objective, variables: Variables, objective_state: PyTree, batch: AdversarialBatch, context: Context
) -> AdversarialBatch:
    """Join the parts of an adversarial batch again, as `after_step` expects.

    Values handed on by wrappers are joined if they are per example; of other values the last part's is kept.
    """
    if not in_parts(batch):
        return batch
    clean, images, iterates = join((batch.clean, batch.images, batch.iterates), views=objective.views)
    extra = batch.extra
    if jax.tree.leaves(extra):
        # Only the shapes for the full batch show which values are per example.
        crafted = jax.eval_shape(lambda: objective.perturb(variables, objective_state, clean, context))

        def of_whole(parts: Array, whole: jax.ShapeDtypeStruct) -> Array:
            return parts[-1] if parts.shape[1:] == whole.shape else join(parts, views=objective.views)

        extra = jax.tree.map(of_whole, extra, with_fields_of_their_own(crafted).extra)
    return AdversarialBatch(clean, images, extra, batch.model_state, _means(batch.metrics), iterates)


def _means(metrics: Any) -> dict[str, Array]:
    return {name: jnp.mean(values, axis=0) for name, values in metrics.items()}
