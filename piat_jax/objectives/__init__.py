"""Adversarial-training methods, each an `Objective` (core/types.py), with one file per paper.

`METHODS` are complete methods. `WRAPPERS` go around any of them, and around each other: `AWP(TRADES(...))`. The
decorators `method` and `wrapper` add to both, here and in your own files.
"""

from piat_jax.objectives.base import (
    METHODS,
    WRAPPERS,
    AttackedObjective,
    Outputs,
    Resources,
    Terms,
    Wrapper,
    WrapperState,
    method,
    wrapper,
)

# isort: off
# This order is the order of the listings.
from piat_jax.objectives.standard import Standard
from piat_jax.objectives.pgd_at import PGDAT
from piat_jax.objectives.alp import ALP
from piat_jax.objectives.trades import TRADES
from piat_jax.objectives.mart import MART
from piat_jax.objectives.nmse import NMSE
from piat_jax.objectives.free import FreeAT
from piat_jax.objectives.score import SCORE
from piat_jax.objectives.ikl import IKL
from piat_jax.objectives.stat import STAT
from piat_jax.objectives.mail import MAIL
from piat_jax.objectives.gairat import GAIRAT
from piat_jax.objectives.fat import FAT
from piat_jax.objectives.cfa import CFA
from piat_jax.objectives.rat import RAT
from piat_jax.objectives.consistency import Consistency
from piat_jax.objectives.awp import AWP
from piat_jax.objectives.rpat import RPAT
from piat_jax.objectives.grad_align import GradAlign
from piat_jax.objectives.rebat import ReBAT, RPATpp
from piat_jax.objectives.distillation import Distillation
from piat_jax.objectives.ecas import ECAS
from piat_jax.objectives.las import LAS
from piat_jax.objectives.ard_prm import ARDPRM
from piat_jax.objectives.mixup_cutmix import Mix
from piat_jax.objectives.multi_norm import MultiNorm
from piat_jax.objectives.ewat import EWAT
from piat_jax.objectives.sovr import SOVR
from piat_jax.objectives.mlcat import MLCAT
from piat_jax.objectives.hat import HAT
from piat_jax.objectives.uiat import UIAT
from piat_jax.objectives.dafa import DAFA
from piat_jax.objectives.mma import MMA
from piat_jax.objectives.te import TE
from piat_jax.objectives.adr import ADR
from piat_jax.objectives.cure import CURE
from piat_jax.objectives.lbgat import LBGAT
from piat_jax.objectives.generalist import Generalist

# isort: on
from piat_jax.objectives.parts import loss_gradient

__all__ = [
    "ADR",
    "ALP",
    "ARDPRM",
    "AWP",
    "CFA",
    "CURE",
    "DAFA",
    "ECAS",
    "EWAT",
    "FAT",
    "GAIRAT",
    "HAT",
    "IKL",
    "LAS",
    "LBGAT",
    "MAIL",
    "MART",
    "METHODS",
    "MLCAT",
    "MMA",
    "NMSE",
    "PGDAT",
    "RAT",
    "RPAT",
    "SCORE",
    "SOVR",
    "STAT",
    "TE",
    "TRADES",
    "UIAT",
    "WRAPPERS",
    "AttackedObjective",
    "Consistency",
    "Distillation",
    "FreeAT",
    "Generalist",
    "GradAlign",
    "Mix",
    "MultiNorm",
    "Outputs",
    "RPATpp",
    "ReBAT",
    "Resources",
    "Standard",
    "Terms",
    "Wrapper",
    "WrapperState",
    "loss_gradient",
    "method",
    "wrapper",
]
