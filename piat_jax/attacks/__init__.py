"""Attacks: `attack(logits_fn, images, labels, key=...)`, pure functions from pixel space to pixel space."""

from piat_jax.attacks.pgd import cw, fgsm, mi_fgsm, pgd
from piat_jax.core.bound import bind

__all__ = ["ATTACKS", "bind", "cw", "fgsm", "mi_fgsm", "pgd"]

ATTACKS = {"fgsm": fgsm, "pgd": pgd, "mi_fgsm": mi_fgsm, "cw": cw}
