"""Adversarial-training methods: one file per paper, every one an `Objective` (core/types.py)."""

from piat_jax.objectives.alp import ALP
from piat_jax.objectives.awp import AWP
from piat_jax.objectives.base import AttackedObjective
from piat_jax.objectives.nmse import NMSE
from piat_jax.objectives.pgd_at import PGDAT
from piat_jax.objectives.standard import Standard
from piat_jax.objectives.trades import TRADES

__all__ = ["ALP", "AWP", "METHODS", "NMSE", "PGDAT", "TRADES", "AttackedObjective", "Standard"]

METHODS: dict[str, type[AttackedObjective]] = {
    "pgd_at": PGDAT,
    "alp": ALP,
    "trades": TRADES,
    "nmse": NMSE,
    "standard": Standard,
}
