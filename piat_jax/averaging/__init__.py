"""Averages of weights over training: PIAT's interpolation, as a hook and for optax, and averages beside the weights."""

from piat_jax.averaging.average import EQUAL_WEIGHT, Average, Gated, WarmupDecay, averaged, share_of_first
from piat_jax.averaging.batch_stats import recompute_batch_stats
from piat_jax.averaging.interpolation import (
    InterpolateParamsState,
    RationalWeight,
    eval_params,
    interpolate,
    interpolate_params,
    interpolated,
)
from piat_jax.averaging.piat import PIAT

__all__ = [
    "EQUAL_WEIGHT",
    "PIAT",
    "Average",
    "Gated",
    "InterpolateParamsState",
    "RationalWeight",
    "WarmupDecay",
    "averaged",
    "eval_params",
    "interpolate",
    "interpolate_params",
    "interpolated",
    "recompute_batch_stats",
    "share_of_first",
]
