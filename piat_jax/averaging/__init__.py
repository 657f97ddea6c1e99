"""Weight averaging over training: PIAT's interpolation, as a hook and for optax, and EMA, SEAT, SWA and FAWA."""

from piat_jax.averaging.averages import AVERAGES, average, average_fields
from piat_jax.averaging.batch_stats import recompute_batch_stats
from piat_jax.averaging.interpolation import (
    InterpolateParamsState,
    RationalWeight,
    eval_params,
    interpolate,
    interpolate_params,
    interpolated,
)
from piat_jax.averaging.piat import INTERPOLATIONS, PIAT
from piat_jax.averaging.weight_average import (
    EQUAL_WEIGHT,
    FAWA,
    Average,
    Gated,
    WarmupDecay,
    average_of,
    averaged,
    share_of_first,
    with_average,
)

__all__ = [
    "AVERAGES",
    "EQUAL_WEIGHT",
    "FAWA",
    "INTERPOLATIONS",
    "PIAT",
    "Average",
    "Gated",
    "InterpolateParamsState",
    "RationalWeight",
    "WarmupDecay",
    "average",
    "average_fields",
    "average_of",
    "averaged",
    "eval_params",
    "interpolate",
    "interpolate_params",
    "interpolated",
    "recompute_batch_stats",
    "share_of_first",
    "with_average",
]
