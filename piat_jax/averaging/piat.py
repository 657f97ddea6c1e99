"""PIAT as the trainer's epoch-end hook, which interpolates weights and BatchNorm's running statistics together."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from piat_jax.averaging.interpolation import PAPER_WEIGHT, Weight, check_weight, interpolate, weight_at
from piat_jax.core.checks import InputError, check_choice, check_count
from piat_jax.core.registry import Registry
from piat_jax.core.renamed import warn
from piat_jax.core.trees import copied
from piat_jax.core.types import Array, PyTree, TrainState, Variables

BATCH_STATS = ("interpolate", "keep", "recompute")
MOMENTUM = ("keep", "reset")

INTERPOLATIONS: Registry[type[Any]] = Registry("interpolation")
"""Methods that replace the weights from which training continues after each epoch: only PIAT."""


@INTERPOLATIONS.register(
    "piat",
    summary="Interpolates the weights at the end of each epoch and continues training from the result.",
    paper="the PIAT paper, Eq. 9-10",
)
@dataclasses.dataclass(frozen=True)
class PIAT:
    """Interpolate the weights at the end of each epoch and continue from the result; an `EpochEnd`.

    `theta'_n = lambda_n theta'_{n-1} + (1 - lambda_n) theta_n`, with `theta'_0` the initial weights. theta'_{n-1} are
    the previous *interpolated* weights, not those at the end of the previous epoch. `init` puts them into the state
    before the first epoch. Evaluate and return `theta'_n`: run the hook before evaluating.

    Attributes:
      weight: `lambda`: a schedule n -> lambda_n, or a constant float. Equal hooks share one compilation if their
        weights compare equal, which lambdas and local functions do not.
      first_epoch: n of the first epoch: 1 as in Algorithm 1, 0 as in the public codes nearest to the paper.
      batch_stats: BatchNorm's running statistics, which the paper does not mention. "interpolate" treats them like the
        weights; "keep" keeps those of the fast weights; "recompute" keeps them too, but the caller must then run
        `recompute_batch_stats` before using the weights in evaluation mode.
      momentum: the optimizer's momentum across the jump: "keep", or "reset" to zero. A reset affects only momentum
        traces and Adam's first moments; second moments and step counts, and so the learning rate, continue.

    Raises:
      InputError: an unknown choice or a value out of range; called on a state without an anchor, or with
        momentum="reset" and an optimizer without momentum.

    >>> from piat_jax.core.types import TrainState
    >>> fields = dict(step=0, epoch=0, model_state={}, opt_state=(), objective_state=())
    >>> state = PIAT(weight=0.25).init(TrainState(params={"w": jnp.array(8.0)}, anchor=None, **fields))
    >>> state = dataclasses.replace(state, params={"w": jnp.array(4.0)})  # an epoch of training
    >>> PIAT(weight=0.25)(state, 1).params["w"].item()
    5.0
    """

    weight: Weight = PAPER_WEIGHT
    first_epoch: int = 1
    batch_stats: str = "interpolate"
    momentum: str = "keep"

    def __post_init__(self) -> None:
        check_weight(self.weight)
        check_count("first_epoch", self.first_epoch, 0)
        check_choice("batch_stats", self.batch_stats, BATCH_STATS)
        check_choice("momentum", self.momentum, MOMENTUM)

    def init(self, state: TrainState) -> TrainState:
        """The state with its weights and statistics as the anchor; call it once, before the first epoch."""
        return dataclasses.replace(state, anchor=copied(state.variables))

    def start(self, state: TrainState) -> TrainState:
        """Deprecated name of `init`."""
        warn("PIAT.start", "PIAT.init")
        return self.init(state)

    def __call__(self, state: TrainState, epoch: Array | int) -> TrainState:
        """The state at the end of `epoch` (1-based, traced or not) -> the state that the next epoch starts from."""
        if state.anchor is None:
            raise InputError("state.anchor is None; call PIAT.init(state) once, before the first epoch")
        weight = weight_at(self.weight, epoch - 1 + self.first_epoch)
        params = interpolate(state.anchor.params, state.params, weight)
        model_state = state.model_state
        if self.batch_stats == "interpolate":
            model_state = interpolate(state.anchor.model_state, model_state, weight)
        opt_state = state.opt_state if self.momentum == "keep" else reset_momentum(state.opt_state)
        return dataclasses.replace(
            state,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            anchor=copied(Variables(params, model_state)),
        )


def without_momentum(opt_state: PyTree) -> PyTree:
    """An optax state with zeros in the fields `trace` (momentum) and `mu` (first moments), however deeply wrapped."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if _is_momentum(path) else leaf, opt_state
    )


def _is_momentum(path: tuple) -> bool:
    # Only attributes of the states' named tuples; a parameter with such a name is a dictionary key.
    return any(isinstance(key, jax.tree_util.GetAttrKey) and key.name in ("trace", "mu") for key in path)


def reset_momentum(opt_state: PyTree) -> PyTree:
    """`without_momentum`; raises InputError if the optimizer has no momentum."""
    if not any(_is_momentum(path) for path, _ in jax.tree_util.tree_leaves_with_path(opt_state)):
        raise InputError('momentum="reset" finds no momentum in the optimizer\'s state; use momentum="keep"')
    return without_momentum(opt_state)
