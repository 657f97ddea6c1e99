"""Averages kept beside the weights, from which training never goes on: EMA, SEAT, SWA and FAWA are one rule."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.averaging.interpolation import (
    PAPER_WEIGHT,
    RationalWeight,
    Weight,
    check_weight,
    interpolate,
    weight_at,
)
from piat_jax.core.checks import InputError, check_choice, check_count, check_range, check_share
from piat_jax.core.renamed import renamed_argument, warn
from piat_jax.core.trees import copied
from piat_jax.core.types import Array, EpochEnd, TrainState, Variables, WeightAverage

EVERY = ("step", "epoch")
BATCH_STATS = ("interpolate", "copy", "recompute")

EQUAL_WEIGHT = RationalWeight(a=1.0, b=0.0, c=1.0, d=1.0)
"""`n / (n + 1)` after n states: every state counts alike, so the average is their arithmetic mean (SWA)."""


@dataclasses.dataclass(frozen=True)
class WarmupDecay:
    """`min(limit, (n + 1) / (n + 10))`: PIAT's schedule up to a limit, as SEAT's moving average has it.

    Attributes:
      limit: 0.999 in SEAT.

    Raises:
      InputError: a limit outside [0, 1].

    >>> [round(float(WarmupDecay()(n)), 3) for n in (1, 8, 100000)]
    [0.182, 0.5, 0.999]
    """

    limit: float = 0.999

    def __post_init__(self) -> None:
        check_range("limit", self.limit, 0, 1)

    def __call__(self, n: jax.typing.ArrayLike) -> Array:
        """The weight of the past after n averaged states."""
        return jnp.minimum(PAPER_WEIGHT(n), self.limit)


@renamed_argument("period", "every")
@dataclasses.dataclass(frozen=True)
class Average:
    """`average <- w_n average + (1 - w_n) current` after each step or epoch, in the training state.

    The first averaged state is copied, and n counts the states averaged before this one. `init` makes room in
    the state before training. As the compiled loop's `step_end` use `after_step`; the object itself is an `EpochEnd`,
    to be run after PIAT's, so that it averages `theta'_n`. Whichever `every` does not name changes nothing.

    - EMA, SEAT: `Average(WarmupDecay(0.999), every="step")`
    - EMA without warm-up: `Average(0.999, every="step")`, which after n states is `0.999^(n - 1)` the first of them
    - SWA: `Average(EQUAL_WEIGHT, start=55 / 200, epochs=200, batch_stats="recompute")`
    - FAWA: `Gated(FAWA(0.88), accept)`, with a validation score in `accept`

    Attributes:
      weight: `w`, what remains of the average: a constant in [0, 1], or a schedule n -> w_n. Equal averages share one
        compilation if their weights compare equal.
      every: what is averaged, the state after each "step" or after each "epoch".
      start: share of the run's epochs before the first averaged state: 55/200 in KD+SWA, whose first is that of
        epoch 55 (0-based). 0 averages from the beginning.
      epochs: how many the run has; needed where `start` is above 0.
      name: where it is kept: "" in `TrainState.average`, else under this name in `TrainState.further_averages`.
      batch_stats: "interpolate" averages the running statistics as the weights (EMA, SEAT, FAWA). "copy" takes those of
        the current weights (DeepMind's codes). "recompute" takes them as well, and whoever holds the data follows with
        `recompute_batch_stats` before the average is evaluated (SWA: on clean training images).

    Raises:
      InputError: an unknown choice or a value out of range; called on a state without room for an average.

    Source: Wang & Wang (2022), arXiv:2203.09678 (SEAT; its code's average starts from the random weights, which keep a
    tenth after one step and next to nothing soon after; here from the weights after the first step). Izmailov et al.
    (2018), arXiv:1803.05407 (SWA). Wei et al. (2023), arXiv:2303.14460 (FAWA).

    >>> fields = dict(step=0, epoch=0, model_state={}, opt_state=(), objective_state=())
    >>> mean = Average(EQUAL_WEIGHT)
    >>> state = mean.init(TrainState(params={"w": jnp.array(8.0)}, **fields))
    >>> for epoch, w in enumerate((1.0, 2.0, 6.0), 1):
    ...     state = mean(dataclasses.replace(state, params={"w": jnp.array(w)}), epoch)
    >>> averaged(state).params["w"].item()
    3.0
    """

    weight: Weight
    every: str = "epoch"
    start: float = 0.0
    epochs: int | None = None
    batch_stats: str = "interpolate"
    name: str = ""

    def __post_init__(self) -> None:
        check_weight(self.weight)
        check_choice("every", self.every, EVERY)
        check_share("start", self.start)
        check_choice("batch_stats", self.batch_stats, BATCH_STATS)
        if self.epochs is not None:
            check_count("epochs", self.epochs, 1)
        elif self.start > 0:
            raise InputError(f"start={self.start} is a share of the run; give its epochs as well")

    def init(self, state: TrainState) -> TrainState:
        """The state with room for an average of which nothing counts yet; to be called once, before training."""
        return with_average(state, self.name, WeightAverage(copied(state.variables), jnp.zeros((), jnp.int32)))

    def start_average(self, state: TrainState) -> TrainState:
        """`init`, under the name that it had."""
        warn("Average.start_average", "Average.init")
        return self.init(state)

    @property
    def period(self) -> str:
        """`every`, under the name that it had."""
        warn("Average.period", "Average.every")
        return self.every

    def after_step(self, state: TrainState) -> TrainState:
        """The state after an optimizer step of epoch `state.epoch` (0-based); pure, for the compiled loop."""
        return self._update(state, state.epoch) if self.every == "step" else state

    def __call__(self, state: TrainState, epoch: Array | int) -> TrainState:
        """The state at the end of `epoch` (1-based, traced or not)."""
        return self._update(state, epoch - 1) if self.every == "epoch" else state

    def _update(self, state: TrainState, epoch: Array | int) -> TrainState:
        kept = average_of(state, self.name)

        def updated(average: WeightAverage, current: Variables) -> WeightAverage:
            weight = jnp.where(average.count == 0, 0.0, weight_at(self.weight, average.count))
            model_state = current.model_state
            if self.batch_stats == "interpolate":
                model_state = interpolate(average.variables.model_state, model_state, weight)
            params = interpolate(average.variables.params, current.params, weight)
            return WeightAverage(Variables(params, model_state), average.count + 1)

        first = round(self.start * (self.epochs or 0))
        average = jax.lax.cond(jnp.asarray(epoch) >= first, updated, lambda kept, _: kept, kept, state.variables)
        return with_average(state, self.name, average)


@dataclasses.dataclass(frozen=True)
class FAWA(Average):
    """FAWA's "fairness aware" average, of the epochs whose worst class is robust enough; its hook goes into `Gated`.

    Attributes:
      threshold: the accuracy in [0, 1] that the worst class (`evaluation.worst_class`) of the validation examples
        must reach under PGD-10: 0.2, as the README of its code runs it (0.24 by default).

    Source: Wei et al. (2023), arXiv:2303.14460, and its code; the weight of the past is 0.88 there. Its average is a
    random network until the first accepted epoch; `averaged` gives the current weights.
    """

    threshold: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("threshold", self.threshold, 0, 1)


@dataclasses.dataclass(frozen=True)
class Gated:
    """An epoch-end hook that runs only after the epochs a score accepts, as FAWA does.

    Not compiled: `accept` looks at data.

    Attributes:
      hook: an `Average`, or its compiled form.
      accept: whether the state, as the hooks before left it, is to be averaged.
    """

    hook: EpochEnd
    accept: Callable[[TrainState], bool]

    def __call__(self, state: TrainState, epoch: Array | int) -> TrainState:
        """The state at the end of `epoch` (1-based)."""
        return self.hook(state, jnp.asarray(epoch)) if self.accept(state) else state


def share_of_first(weight: Weight, states: int) -> float:
    """What share of an average of so many states is the first of them: `w_1 w_2 ... w_(states - 1)`.

    Where it is large, the average is hardly one: after few steps a constant 0.999 is still the network that training
    began with. The weight has to be traceable, as everywhere.

    Args:
      weight: `w`, as in `Average`.
      states: how many were averaged, at least 1.

    Raises:
      InputError: a weight outside [0, 1], or no state.

    >>> [round(share_of_first(weight, 480), 3) for weight in (0.999, WarmupDecay(0.999), EQUAL_WEIGHT)]
    [0.619, 0.0, 0.002]
    """
    check_weight(weight)
    check_count("states", states, 1)
    weights = jax.vmap(lambda n: jnp.asarray(weight_at(weight, n), float))(jnp.arange(1, states))
    return float(np.prod(np.asarray(weights, np.float64)))


def averaged(state: TrainState, name: str = "") -> Variables:
    """What to evaluate as the average; before the first averaged state, the current weights.

    Args:
      state: it is kept there.
      name: of which average; "" is `TrainState.average`.

    Raises:
      InputError: the state has no room for it.
    """
    kept = average_of(state, name)
    return jax.tree.map(lambda mean, now: jnp.where(kept.count > 0, mean, now), kept.variables, state.variables)


def average_of(state: TrainState, name: str) -> WeightAverage:
    """The average of this name; "" is `TrainState.average`.

    Raises:
      InputError: the state has no room for it.
    """
    kept = state.further_averages.get(name) if name else state.average
    if kept is None:
        where = f"state.further_averages has no {name!r}" if name else "state.average is None"
        raise InputError(f"{where}; call Average.init(state) once, before training")
    return kept


def with_average(state: TrainState, name: str, average: WeightAverage) -> TrainState:
    """The state with this in place of the average of that name."""
    if not name:
        return dataclasses.replace(state, average=average)
    return dataclasses.replace(state, further_averages={**state.further_averages, name: average})
