"""Weight averages for evaluation only, which training never continues from: EMA, SEAT, SWA and FAWA as one rule."""

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
"""`n / (n + 1)` after n states: all states have equal weight, so the average is their arithmetic mean (SWA)."""


@dataclasses.dataclass(frozen=True)
class WarmupDecay:
    """`min(limit, (n + 1) / (n + 10))`: PIAT's schedule up to a limit, as in SEAT's moving average.

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

    The first averaged state is copied; n counts the states averaged before the current one. `init` makes room in the
    state before training. Use `after_step` as the compiled loop's `step_end`. The object itself is an `EpochEnd`; run
    it after PIAT, so that it averages `theta'_n`. The hook that `every` does not select changes nothing.

    - EMA, SEAT: `Average(WarmupDecay(0.999), every="step")`
    - EMA without warm-up: `Average(0.999, every="step")`; after n states the first has weight `0.999^(n - 1)`
    - SWA: `Average(EQUAL_WEIGHT, start=55 / 200, epochs=200, batch_stats="recompute")`
    - FAWA: `Gated(FAWA(0.88), accept)`, with a validation score in `accept`

    Attributes:
      weight: `w`, the weight of the past: a constant in [0, 1], or a schedule n -> w_n. Equal averages share one
        compilation if their weights compare equal.
      every: whether to average the state after each "step" or each "epoch".
      start: share of the run's epochs before the first averaged state: 55/200 in KD+SWA, whose first averaged state is
        that of epoch 55 (0-based). 0 averages from the beginning.
      epochs: number of epochs of the run; needed if `start` is above 0.
      name: where to keep the average: "" in `TrainState.average`, else under this name in
        `TrainState.further_averages`.
      batch_stats: "interpolate" averages the running statistics like the weights (EMA, SEAT, FAWA). "copy" copies those
        of the current weights (DeepMind's codes). "recompute" copies them too, but the caller must then run
        `recompute_batch_stats` before evaluating the average (SWA: on clean training images).

    Raises:
      InputError: an unknown choice or a value out of range; called on a state without room for an average.

    Source: Wang & Wang (2022), arXiv:2203.09678 (SEAT; its code's average starts from the random weights, which have
    weight 0.1 after one step and almost none soon after; here the average starts from the weights after the first
    step). Izmailov et al. (2018), arXiv:1803.05407 (SWA). Wei et al. (2023), arXiv:2303.14460 (FAWA).

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
            raise InputError(f"start={self.start} is a share of the run; give epochs as well")

    def init(self, state: TrainState) -> TrainState:
        """The state with room for an average; call it once, before training."""
        return with_average(state, self.name, WeightAverage(copied(state.variables), jnp.zeros((), jnp.int32)))

    def start_average(self, state: TrainState) -> TrainState:
        """Deprecated name of `init`."""
        warn("Average.start_average", "Average.init")
        return self.init(state)

    @property
    def period(self) -> str:
        """Deprecated name of `every`."""
        warn("Average.period", "Average.every")
        return self.every

    def after_step(self, state: TrainState) -> TrainState:
        """Update the average after an optimizer step of epoch `state.epoch` (0-based); pure, for the compiled loop."""
        return self._update(state, state.epoch) if self.every == "step" else state

    def __call__(self, state: TrainState, epoch: Array | int) -> TrainState:
        """Update the average at the end of `epoch` (1-based, traced or not)."""
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
    """FAWA's "fairness aware" average over epochs whose worst class is robust enough; wrap its hook in `Gated`.

    Attributes:
      threshold: the accuracy in [0, 1] that the worst class (`evaluation.worst_class`) of the validation examples must
        reach under PGD-10: 0.2, as in the README of its code (the code's default is 0.24).

    Source: Wei et al. (2023), arXiv:2303.14460, and its code, where the weight of the past is 0.88. Its average is a
    random network until the first accepted epoch; here `averaged` returns the current weights until then.
    """

    threshold: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("threshold", self.threshold, 0, 1)


@dataclasses.dataclass(frozen=True)
class Gated:
    """An epoch-end hook that runs only after epochs that a score accepts, as in FAWA.

    It is not compiled, because `accept` reads data.

    Attributes:
      hook: an `Average`, or its compiled form.
      accept: decides whether to average the state, as the previous hooks left it.
    """

    hook: EpochEnd
    accept: Callable[[TrainState], bool]

    def __call__(self, state: TrainState, epoch: Array | int) -> TrainState:
        """The state at the end of `epoch` (1-based)."""
        return self.hook(state, jnp.asarray(epoch)) if self.accept(state) else state


def share_of_first(weight: Weight, states: int) -> float:
    """The weight of the first state in an average of `states` states: `w_1 w_2 ... w_(states - 1)`.

    If it is large, the average is close to the first state: after few steps with a constant 0.999, it is still the
    network that training began with. The weight must be traceable.

    Args:
      weight: `w`, as in `Average`.
      states: number of averaged states, at least 1.

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
    """The averaged weights to evaluate; before the first averaged state, the current weights.

    Args:
      state: a training state with an average.
      name: name of the average; "" is `TrainState.average`.

    Raises:
      InputError: the state has no room for this average.
    """
    kept = average_of(state, name)
    return jax.tree.map(lambda mean, now: jnp.where(kept.count > 0, mean, now), kept.variables, state.variables)


def average_of(state: TrainState, name: str) -> WeightAverage:
    """The average with this name; "" is `TrainState.average`.

    Raises:
      InputError: the state has no room for this average.
    """
    kept = state.further_averages.get(name) if name else state.average
    if kept is None:
        where = f"state.further_averages has no {name!r}" if name else "state.average is None"
        raise InputError(f"{where}; call Average.init(state) once, before training")
    return kept


def with_average(state: TrainState, name: str, average: WeightAverage) -> TrainState:
    """The state with its average `name` replaced."""
    if not name:
        return dataclasses.replace(state, average=average)
    return dataclasses.replace(state, further_averages={**state.further_averages, name: average})
