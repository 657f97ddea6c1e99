"""Learning-rate schedules by name: functions of the run's length; keyword arguments are `config.optimizer` fields."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from piat_jax.core.bound import fields_of
from piat_jax.core.checks import InputError, check_at_least, check_choice, check_count, check_range
from piat_jax.core.registry import Registry
from piat_jax.core.types import Array

EVERY = ("step", "epoch")
UNITS = ("epochs", "shares")


class Rate(NamedTuple):
    """Learning rate and momentum as functions of the optimizer step, 0-based."""

    learning_rate: optax.Schedule
    momentum: optax.Schedule | None = None  # if the momentum is scheduled too


class Length(NamedTuple):
    """A run's length, and how often its rate changes."""

    epochs: int
    steps: int  # per epoch
    every: str  # "step" or "epoch"

    @property
    def rates(self) -> int:
        """The number of rates in the run: one per step, or one per epoch."""
        return self.epochs * (self.steps if self.every == "step" else 1)

    def knot(self, name: str, value: float, unit: str) -> float:
        """Convert a place in the run to a number of rates."""
        most = 1 if unit == "shares" else self.epochs
        check_range(name, value, 0, most)
        return value / most * self.rates

    def over(self, rate: Callable[[Array], Array]) -> optax.Schedule:
        """Convert a function of the rate's number, from 0, to a function of the step."""
        length = 1 if self.every == "step" else self.steps
        return lambda step: rate((jnp.asarray(step, jnp.int32) // length).astype(float))


SCHEDULES: Registry[Callable[..., Rate]] = Registry("schedule")
"""Functions `(*, length, ...) -> Rate`; all other arguments have defaults and are config fields."""

schedule = SCHEDULES.register


def schedule_fields(name: str) -> dict[str, Any]:
    """The fields of a schedule with their defaults.

    >>> schedule_fields("constant")
    {'lr': 0.1, 'lr_warmup': 0.0, 'lr_unit': 'epochs', 'lr_every': 'epoch'}
    """
    check_choice("schedule", name, SCHEDULES)
    return fields_of(SCHEDULES[name], without=("length",))


def build_rate(name: str, fields: Mapping[str, Any], *, epochs: int, steps_per_epoch: int) -> Rate:
    """The schedule with this name for a run of `epochs` epochs.

    Args:
      name: one of `SCHEDULES`.
      fields: fields from `schedule_fields`.
      epochs: number of epochs of the run.
      steps_per_epoch: optimizer steps per epoch.

    Raises:
      InputError: an unknown name, or a field out of range.

    >>> rate = build_rate("cosine", {"lr": 0.5, "lr_every": "step"}, epochs=2, steps_per_epoch=4)
    >>> [round(float(rate.learning_rate(step)), 3) for step in (0, 4, 8)]
    [0.5, 0.25, 0.0]
    """
    check_choice("schedule", name, SCHEDULES)
    check_count("epochs", epochs, 1)
    check_count("steps_per_epoch", steps_per_epoch, 1)
    values = {**schedule_fields(name), **fields}
    for field, choices in (("lr_every", EVERY), ("lr_unit", UNITS)):
        if field in values:
            check_choice(field, values[field], choices)
    for field in ("lr", "lr_final"):
        if field in values:
            check_at_least(field, values[field], 0)
    return SCHEDULES[name](length=Length(epochs, steps_per_epoch, values.get("lr_every", "epoch")), **values)


@schedule("piecewise_linear", summary="Linear between knots, as in the papers' codes.", paper="the PIAT paper, V-A")
def _piecewise_linear(
    *,
    length: Length,
    lr_epochs: Sequence[float] = (0.0, 60.0, 90.0, 120.0),
    lr_values: Sequence[float] = (0.01, 0.01, 0.001, 0.0001),
    lr_unit: str = "epochs",
    lr_every: str = "epoch",
) -> Rate:
    """A rate that is linear between knots: an epoch's rate is that of its 1-based number, a step's lies between.

    Args:
      lr_epochs: increasing knots; the defaults scale with the number of epochs.
      lr_values: learning rate at each knot; constant before the first and after the last.
      lr_unit: unit of the knots: epochs, or shares of the run.
      lr_every: whether the rate changes with each epoch or each step.
    """
    del lr_every
    knots = lr_epochs
    if lr_unit == "shares":
        knots = [length.knot("lr_epochs", knot, lr_unit) / length.rates * length.epochs for knot in lr_epochs]
    if length.every == "epoch":
        return Rate(piecewise_linear(knots, lr_values, length.steps))
    check_knots(lr_epochs, lr_values)
    places, heights = np.asarray(knots, float), np.asarray(lr_values, float)
    return Rate(length.over(lambda number: jnp.interp(number / length.steps, places, heights)))


def piecewise_linear(epochs: Sequence[float], values: Sequence[float], steps_per_epoch: int) -> optax.Schedule:
    """A learning rate interpolated linearly between knots, evaluated once per epoch at its 1-based number.

    `lr(n) = interp(n; epochs, values)`: with the PIAT paper's knots (0, 60, 90, 120) and values (1e-2, 1e-2, 1e-3,
    1e-4) the rate is 1e-2 until epoch 60, 9.7e-3 at 61 and 1e-4 at 120. It is not a step decay and not linear in log
    scale. For a step decay, give two knots one epoch apart: (35, 36) with (0.1, 0.01) drops after epoch 35.

    Args:
      epochs: increasing knots.
      values: the learning rate at each knot; constant before the first and after the last.
      steps_per_epoch: optimizer steps per epoch.

    Returns:
      step (0-based) -> learning rate.

    Raises:
      InputError: knots that are not finite or do not increase, or a number of values that differs from that of knots.

    Source: PIAT paper, Section V-A; one rate per epoch, as in SEAT and Generalist, from which PIAT derives.

    >>> schedule = piecewise_linear((0, 60, 90, 120), (1e-2, 1e-2, 1e-3, 1e-4), steps_per_epoch=10)
    >>> [round(float(schedule(10 * (n - 1))), 6) for n in (1, 60, 61, 75, 120)]
    [0.01, 0.01, 0.0097, 0.0055, 0.0001]
    """
    check_knots(epochs, values)
    check_count("steps_per_epoch", steps_per_epoch, 1)
    knots, heights = np.asarray(epochs, float), np.asarray(values, float)

    def rate(step: jax.typing.ArrayLike) -> Array:
        epoch = jnp.asarray(step, jnp.int32) // steps_per_epoch + 1
        return jnp.interp(epoch.astype(float), knots, heights)

    return rate


def check_knots(epochs: Sequence[float], values: Sequence[float]) -> None:
    """Raise InputError unless the knots increase and each has a rate."""
    if len(epochs) != len(values) or not epochs:
        raise InputError(f"lr_epochs has {len(epochs)} entries and lr_values {len(values)}; give one value per knot")
    if not all(map(math.isfinite, epochs)):
        raise InputError(f"lr_epochs={tuple(epochs)} must be finite")
    if any(late <= early for early, late in itertools.pairwise(epochs)):
        raise InputError(f"lr_epochs={tuple(epochs)} must increase")
    for value in values:
        if not 0 <= value < math.inf:
            raise InputError(f"lr_values={tuple(values)} must be finite and at least 0")


@schedule("constant", summary="One rate for the whole run.")
def _constant(
    *, length: Length, lr: float = 0.1, lr_warmup: float = 0.0, lr_unit: str = "epochs", lr_every: str = "epoch"
) -> Rate:
    """A constant rate after a warm-up.

    Args:
      lr: learning rate.
      lr_warmup: how long the rate rises to lr, in lr_unit; 0 = no warm-up.
      lr_unit: unit of the warm-up: epochs, or shares of the run.
      lr_every: whether the rate changes with each epoch or each step.
    """
    del lr_every
    return Rate(length.over(_warmed_up(length, lr, lr_warmup, lr_unit, lambda number, _: jnp.full_like(number, lr))))


@schedule("step", summary="Multiplied by a factor at given places in the run.")
def _step(
    *,
    length: Length,
    lr: float = 0.1,
    lr_drops: Sequence[float] = (60.0, 90.0),
    lr_factor: float = 0.1,
    lr_warmup: float = 0.0,
    lr_unit: str = "epochs",
    lr_every: str = "epoch",
) -> Rate:
    """A rate that is multiplied by a factor at given places, like PyTorch's MultiStepLR.

    Args:
      lr: initial learning rate.
      lr_drops: where the rate drops, increasing, in lr_unit.
      lr_factor: factor of each drop.
      lr_warmup: how long the rate first rises to lr, in lr_unit; 0 = no warm-up.
      lr_unit: unit of the drops and the warm-up: epochs, or shares of the run.
      lr_every: whether the rate changes with each epoch or each step.
    """
    del lr_every
    check_at_least("lr_factor", lr_factor, 0)
    if any(late <= early for early, late in itertools.pairwise(lr_drops)):
        raise InputError(f"lr_drops={tuple(lr_drops)} must increase")
    # In floating point, a drop at a third of the run could fall on either side of its step.
    drops = np.asarray([length.knot("lr_drops", drop, lr_unit) - 1e-3 for drop in lr_drops], float)

    def rate(number: Array, _: float) -> Array:
        return lr * lr_factor ** jnp.sum(number[..., None] >= drops, axis=-1)

    return Rate(length.over(_warmed_up(length, lr, lr_warmup, lr_unit, rate)))


@schedule(
    "cosine", summary="Half a cosine from the peak to the end.", paper="Loshchilov and Hutter (2017), arXiv:1608.03983"
)
def _cosine(
    *,
    length: Length,
    lr: float = 0.1,
    lr_final: float = 0.0,
    lr_warmup: float = 0.0,
    lr_unit: str = "epochs",
    lr_every: str = "epoch",
) -> Rate:
    """`lr_final + (lr - lr_final) (1 + cos(pi s)) / 2`, where s is the share done of the run after the warm-up.

    Args:
      lr: highest learning rate.
      lr_final: learning rate at the end.
      lr_warmup: how long the rate first rises to lr, in lr_unit; 0 = no warm-up.
      lr_unit: unit of the warm-up: epochs, or shares of the run.
      lr_every: whether the rate changes with each epoch or each step.
    """
    del lr_every
    fall = _annealed("cosine", length, lr, lr_final)
    return Rate(length.over(_warmed_up(length, lr, lr_warmup, lr_unit, fall)))


@schedule("linear", summary="A straight line from the peak to the end.")
def _linear(
    *,
    length: Length,
    lr: float = 0.1,
    lr_final: float = 0.0,
    lr_warmup: float = 0.0,
    lr_unit: str = "epochs",
    lr_every: str = "epoch",
) -> Rate:
    """`lr + (lr_final - lr) s`, where s is the share done of the run after the warm-up.

    Args:
      lr: highest learning rate.
      lr_final: learning rate at the end.
      lr_warmup: how long the rate first rises to lr, in lr_unit; 0 = no warm-up.
      lr_unit: unit of the warm-up: epochs, or shares of the run.
      lr_every: whether the rate changes with each epoch or each step.
    """
    del lr_every
    fall = _annealed("linear", length, lr, lr_final)
    return Rate(length.over(_warmed_up(length, lr, lr_warmup, lr_unit, fall)))


@schedule(
    "triangular",
    summary="Linearly up from 0 and down again: the cyclic rate of fast training.",
    paper="Smith (2017), arXiv:1506.01186",
)
def _triangular(
    *,
    length: Length,
    lr: float = 0.1,
    lr_peak: float = 60.0,
    lr_final: float = 0.0,
    momentum_low: float = 0.8,
    momentum_high: float = 0.9,
    lr_unit: str = "epochs",
    lr_every: str = "epoch",
) -> Rate:
    """Linearly from 0 to `lr` at `lr_peak`, then linearly to `lr_final` at the end.

    The momentum moves in the opposite direction, as in PyTorch's CyclicLR by default.

    Args:
      lr: highest learning rate.
      lr_peak: where lr is reached, in lr_unit.
      lr_final: learning rate at the end.
      momentum_low: momentum, or b1 of the Adam family, at the peak.
      momentum_high: momentum at the beginning and the end.
      lr_unit: unit of lr_peak: epochs, or shares of the run.
      lr_every: whether rate and momentum change with each epoch or each step.
    """
    del lr_every
    for name, value in (("momentum_low", momentum_low), ("momentum_high", momentum_high)):
        check_range(name, value, 0, 1)
    peak = length.knot("lr_peak", lr_peak, lr_unit)
    knots = np.asarray([0.0, peak, length.rates], float)

    def between(*values: float) -> optax.Schedule:
        return length.over(lambda number: jnp.interp(number, knots, jnp.asarray(values, float)))

    return Rate(between(0.0, lr, lr_final), between(momentum_high, momentum_low, momentum_high))


@schedule(
    "one_cycle",
    summary="Up and down once, while the momentum moves down and up.",
    paper="Smith and Topin (2019), arXiv:1708.07120",
)
def _one_cycle(
    *,
    length: Length,
    lr: float = 0.1,
    lr_peak: float = 36.0,
    lr_start_div: float = 25.0,
    lr_final_div: float = 1e4,
    lr_anneal: str = "cosine",
    momentum_low: float = 0.85,
    momentum_high: float = 0.95,
    lr_unit: str = "epochs",
    lr_every: str = "epoch",
) -> Rate:
    """PyTorch's OneCycleLR: from `lr / lr_start_div` up to lr, then down to `lr / (lr_start_div lr_final_div)`.

    The momentum, or b1 of the Adam family, moves in the opposite direction.

    Args:
      lr: highest learning rate.
      lr_peak: where lr is reached, in lr_unit.
      lr_start_div: lr divided by the first rate.
      lr_final_div: the first rate divided by the last rate.
      lr_anneal: form of rise and fall: cosine, linear.
      momentum_low: momentum at the peak.
      momentum_high: momentum at the beginning and the end.
      lr_unit: unit of lr_peak: epochs, or shares of the run.
      lr_every: whether rate and momentum change with each epoch or each step.
    """
    del lr_every
    check_choice("lr_anneal", lr_anneal, ("cosine", "linear"))
    for name, value in (("lr_start_div", lr_start_div), ("lr_final_div", lr_final_div)):
        check_range(name, value, 0, math.inf, open_low=True)
    for name, value in (("momentum_low", momentum_low), ("momentum_high", momentum_high)):
        check_range(name, value, 0, 1)
    # As in PyTorch, a phase ends at its last rate; N rates have the numbers 0 to N - 1.
    peak, last = length.knot("lr_peak", lr_peak, lr_unit) - 1, length.rates - 1

    def cycle(begin: float, middle: float, end: float) -> optax.Schedule:
        def value(number: Array) -> Array:
            rise, fall = number / max(peak, 1e-6), (number - peak) / max(last - peak, 1e-6)
            rising = anneal(lr_anneal, begin, middle, jnp.clip(rise, 0, 1))
            return jnp.where(number <= peak, rising, anneal(lr_anneal, middle, end, jnp.clip(fall, 0, 1)))

        return length.over(value)

    first = lr / lr_start_div
    return Rate(cycle(first, lr, first / lr_final_div), cycle(momentum_high, momentum_low, momentum_high))


def anneal(form: str, begin: float, end: float, share: Array) -> Array:
    """The value at `share` between `begin` and `end`, on a straight line or half a cosine.

    >>> [round(float(anneal(form, 0.0, 1.0, jnp.array(0.25))), 3) for form in ("linear", "cosine")]
    [0.25, 0.146]
    """
    if form == "linear":
        return begin + (end - begin) * share
    return end + (begin - end) * (1 + jnp.cos(jnp.pi * share)) / 2


def _annealed(form: str, length: Length, begin: float, end: float) -> Callable[[Array, float], Array]:
    """`(number, number of the first rate after the warm-up) -> rate`, annealed until the end of the run."""

    def rate(number: Array, start: float) -> Array:
        share = (number - start) / max(length.rates - start, 1e-6)
        return anneal(form, begin, end, jnp.clip(share, 0, 1))

    return rate


def _warmed_up(
    length: Length, lr: float, warmup: float, unit: str, rate: Callable[[Array, float], Array]
) -> Callable[[Array], Array]:
    """The rate with a linear warm-up over w rates, whose first rate is `lr / (w + 1)`, not 0."""
    start = length.knot("lr_warmup", warmup, unit)
    if not start:
        return lambda number: rate(number, 0.0)
    return lambda number: jnp.where(number < start, lr * (number + 1) / (start + 1), rate(number, start))
