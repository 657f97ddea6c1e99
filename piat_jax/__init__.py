"""Adversarial training of image classifiers in JAX: PIAT, NMSE and what they are compared with."""

from piat_jax.attacks import bind, cw, fgsm, mi_fgsm, pgd
from piat_jax.averaging import PIAT, RationalWeight, eval_params, interpolate, interpolate_params, interpolated
from piat_jax.evaluation import AutoAttack
from piat_jax.losses import normalized_mse

__version__ = "0.1.0"

__all__ = [
    "PIAT",
    "AutoAttack",
    "RationalWeight",
    "bind",
    "cw",
    "eval_params",
    "fgsm",
    "interpolate",
    "interpolate_params",
    "interpolated",
    "mi_fgsm",
    "normalized_mse",
    "pgd",
]
