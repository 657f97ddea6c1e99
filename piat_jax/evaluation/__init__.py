"""How robust a model is: accuracy under attack, and AutoAttack."""

from piat_jax.attacks.ensemble import Member
from piat_jax.evaluation.accuracy import correct_under_attack, worst_class
from piat_jax.evaluation.autoattack import AutoAttack, Progress
from piat_jax.evaluation.robustness import Finding, Robustness

__all__ = ["AutoAttack", "Finding", "Member", "Progress", "Robustness", "correct_under_attack", "worst_class"]
