"""PIAT as the trainer's epoch-end hook: weights and BatchNorm statistics are interpolated together."""

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
"""What training goes on from after each epoch, in place of its own weights: PIAT alone."""


@INTERPOLATIONS.register(
    "piat",
    summary="Interpolates the weights at each epoch's end and goes on from there.",
    paper="the PIAT paper, Eq. 9-10",
)
@dataclasses.dataclass(frozen=True)
class PIAT:
    """Interpolate the weights at the end of each epoch and continue from the result; an `EpochEnd`.

    `theta'_n = lambda_n theta'_{n-1} + (1 - lambda_n) theta_n`, with `theta'_0` the initial weights: the previous
    *interpolated* weights, not those the previous epoch ended with. `init` puts them into the state before the first
    epoch. What is evaluated and returned is `theta'_n`, so run the hook before evaluating.

    Attributes:
      weight: `lambda`: a schedule n -> lambda_n, or a constant float. Equal hooks share one compilation if their
        weights compare equal; functions written on the spot do not.
      first_epoch: n of the first epoch: 1 as in Algorithm 1, 0 as in the public codes nearest to the paper.
      batch_stats: the running statistics, on which the paper is silent. "interpolate" treats them as the weights;
        "keep" leaves those of the fast weights; "recompute" leaves them as well, and whoever holds the data follows
        with `recompute_batch_stats` before the weights are used in evaluation mode.
      momentum: of the optimizer, across the jump: "keep", or "reset" to zero. A reset touches momentum traces and
        Adam's first moments only; second moments and step counts, and so the learning rate, go on.

    Raises:
      InputError: an unknown choice or a value out of range; called on a state without an anchor, or with
        momentum="reset" and an optimizer that has none.

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
        """The state with its weights and statistics as the anchor, to be called once, before the first epoch."""
        return dataclasses.replace(state, anchor=copied(state.variables))

    def start(self, state: TrainState) -> TrainState:
        """`init`, under the name that it had."""
        warn("PIAT.start", "PIAT.init")
        return self.init(state)

    def __call__(self, state: TrainState, epoch: Array | int) -> TrainState:
        """The state at the end of `epoch` (1-based, traced or not) -> the state that the next one starts from."""
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
    # Attributes of the states' named tuples; a parameter of such a name is a dictionary key.
    return any(isinstance(key, jax.tree_util.GetAttrKey) and key.name in ("trace", "mu") for key in path)


def reset_momentum(opt_state: PyTree) -> PyTree:
    """`without_momentum`, or InputError where the optimizer has none."""
    if not any(_is_momentum(path) for path, _ in jax.tree_util.tree_leaves_with_path(opt_state)):
        raise InputError('momentum="reset" finds no momentum in the optimizer\'s state; use momentum="keep"')
    return without_momentum(opt_state)
