"""Attacks: `attack(logits_fn, images, labels, key=...)`, pure functions from pixel space to pixel space.

Those of `ATTACKS` return images; the decorator `attack` adds to them. AutoAttack's members, `apgd`, `fab` and `square`,
return an `Outcome`.
"""

from piat_jax.attacks.apgd import apgd
from piat_jax.attacks.apgd_training import apgd_ascent
from piat_jax.attacks.fab import fab, fab_distances
from piat_jax.attacks.fast import n_fgsm
from piat_jax.attacks.multi_descent import msd
from piat_jax.attacks.outcome import Outcome
from piat_jax.attacks.pgd import Counted, counting, cw, fgsm, mi_fgsm, pgd, pgd_counted
from piat_jax.attacks.registry import ATTACKS, attack, takes
from piat_jax.attacks.square import square
from piat_jax.core.bound import bind

__all__ = [
    "ATTACKS",
    "Counted",
    "Outcome",
    "apgd",
    "apgd_ascent",
    "attack",
    "bind",
    "counting",
    "cw",
    "fab",
    "fab_distances",
    "fgsm",
    "mi_fgsm",
    "msd",
    "n_fgsm",
    "pgd",
    "pgd_counted",
    "square",
    "takes",
]
