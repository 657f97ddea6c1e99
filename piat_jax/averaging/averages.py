"""The averages by name: functions that build an average for a run; their keyword arguments are config fields."""

import inspect
from collections.abc import Callable
from typing import Any

from piat_jax.averaging.weight_average import EQUAL_WEIGHT, FAWA, Average, WarmupDecay
from piat_jax.core.checks import InputError, check_range
from piat_jax.core.registry import Registry

AVERAGES: Registry[Callable[..., Average]] = Registry("average")
"""Functions `(*, epochs, ...) -> Average`; all arguments except `epochs`, the run's length, have defaults."""

average = AVERAGES.register


@average(
    "ema",
    summary="Exponential average of the weights, each step, with SEAT's warm-up unless average.warmup=False.",
    paper="Polyak and Juditsky (1992)",
)
def ema(
    *,
    epochs: int,
    decay: float = 0.999,
    start: float = 0.0,
    warmup: bool = True,
    batch_stats: str = "interpolate",
) -> Average:
    """EMA: `average <- decay average + (1 - decay) w` after each step, by default with SEAT's warm-up.

    Args:
      epochs: number of epochs of the run.
      decay: in [0, 1].
      start: share of the run before the first averaged state, in [0, 1].
      warmup: whether the decay is `min(decay, (n + 1) / (n + 10))` after n states; else it is constant.
      batch_stats: BatchNorm's running statistics: interpolate, copy (from the current weights), recompute.

    >>> ema(epochs=120, warmup=False).weight
    0.999
    """
    check_range("decay", decay, 0, 1)
    weight = WarmupDecay(decay) if warmup else decay
    return Average(weight, every="step", start=start, epochs=epochs, batch_stats=batch_stats)


@average(
    "seat",
    summary="Exponential average with warm-up, each step.",
    paper="Wang and Wang (2022), arXiv:2203.09678",
)
def seat(*, epochs: int, decay: float = 0.999, start: float = 0.0) -> Average:
    """SEAT: `ema` with warm-up.

    Args:
      epochs, decay, start: as for `ema`.

    >>> seat(epochs=120) == ema(epochs=120)
    True
    """
    return ema(epochs=epochs, decay=decay, start=start)


@average(
    "swa",
    summary="Equal average of the weights over late epochs.",
    paper="Izmailov et al. (2018), arXiv:1803.05407",
)
def swa(*, epochs: int, start: float = 55 / 200) -> Average:
    """SWA: the mean of the weights over the epochs from `start` on; BatchNorm's running statistics are re-estimated.

    Args:
      epochs, start: as for `ema`.

    >>> swa(epochs=200).batch_stats
    'recompute'
    """
    return Average(EQUAL_WEIGHT, start=start, epochs=epochs, batch_stats="recompute")


@average(
    "fawa",
    summary="Average over the epochs whose worst class is robust enough on validation data.",
    paper="Wei et al. (2023), arXiv:2303.14460",
)
def fawa(*, epochs: int, decay: float = 0.88, start: float = 0.0, threshold: float = 0.2) -> FAWA:
    """FAWA: `average <- decay average + (1 - decay) w` after the epochs that a gate accepts (`FAWA`, `Gated`).

    Args:
      epochs, decay, start: as for `ema`.
      threshold: the accuracy in [0, 1] that the worst class must reach.

    >>> fawa(epochs=200).threshold
    0.2
    """
    check_range("decay", decay, 0, 1)
    return FAWA(decay, start=start, epochs=epochs, threshold=threshold)


def average_fields(name: str) -> dict[str, Any]:
    """The fields of an average and their defaults: all arguments of its function except `epochs`.

    Raises:
      InputError: a field has no default.

    >>> average_fields("ema")
    {'decay': 0.999, 'start': 0.0, 'warmup': True, 'batch_stats': 'interpolate'}
    """
    parameters = inspect.signature(AVERAGES[name]).parameters.values()
    fields = {parameter.name: parameter.default for parameter in parameters if parameter.name != "epochs"}
    for field, default in fields.items():
        if default is inspect.Parameter.empty:
            raise InputError(f"average {name!r} has no default for {field!r}; give it one, since configs start from it")
    return fields
