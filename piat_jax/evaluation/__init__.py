"""Robustness evaluation: accuracy under attack, and AutoAttack."""

from piat_jax.attacks.ensemble import Member
from piat_jax.core.renamed import renamed
from piat_jax.evaluation.accuracy import Judged, correct_under_attack, judge_under_attack, worst_class
from piat_jax.evaluation.autoattack import AttackProgress, AutoAttack
from piat_jax.evaluation.classes import WorstClass, class_accuracies, find_worst_class
from piat_jax.evaluation.minimum_norm import MinimumNorms, minimum_norms
from piat_jax.evaluation.robustness import Finding, Robustness
from piat_jax.evaluation.union import AutoAttackUnion, UnionRobustness

__all__ = [
    "AttackProgress",
    "AutoAttack",
    "AutoAttackUnion",
    "Finding",
    "Judged",
    "Member",
    "MinimumNorms",
    "Robustness",
    "UnionRobustness",
    "WorstClass",
    "class_accuracies",
    "correct_under_attack",
    "find_worst_class",
    "judge_under_attack",
    "minimum_norms",
    "worst_class",
]

__getattr__ = renamed(__name__, {"Progress": "AttackProgress"})
