"""Attacks: `attack(logits_fn, images, labels, key=...)`, pure functions from pixel space to pixel space.

Attacks in `ATTACKS` return images; the decorator `attack` registers them. AutoAttack's members, `apgd`, `fab` and
`square`, return an `Outcome`. Attacks in `MINIMUM_NORM` search for the nearest misclassified image and return
`Nearest`.
"""

from piat_jax.attacks.apgd import apgd
from piat_jax.attacks.apgd_training import apgd_ascent
from piat_jax.attacks.ddn import ddn
from piat_jax.attacks.fab import fab, fab_distances
from piat_jax.attacks.fast import n_fgsm
from piat_jax.attacks.fmn import fmn
from piat_jax.attacks.multi_descent import msd
from piat_jax.attacks.nearest import Nearest
from piat_jax.attacks.outcome import Outcome
from piat_jax.attacks.pgd import Counted, counting, cw, fgsm, mi_fgsm, pgd, pgd_counted
from piat_jax.attacks.registry import ATTACKS, MINIMUM_NORM, attack, minimum_norm, takes
from piat_jax.attacks.square import square
from piat_jax.attacks.targeted import multi_targeted, pgd_least_likely
from piat_jax.core.bound import bind

__all__ = [
    "ATTACKS",
    "MINIMUM_NORM",
    "Counted",
    "Nearest",
    "Outcome",
    "apgd",
    "apgd_ascent",
    "attack",
    "bind",
    "counting",
    "cw",
    "ddn",
    "fab",
    "fab_distances",
    "fgsm",
    "fmn",
    "mi_fgsm",
    "minimum_norm",
    "msd",
    "multi_targeted",
    "n_fgsm",
    "pgd",
    "pgd_counted",
    "pgd_least_likely",
    "square",
    "takes",
]
