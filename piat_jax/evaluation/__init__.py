"""How robust a model is: accuracy under attack."""

from piat_jax.evaluation.accuracy import correct_under_attack, worst_class

__all__ = ["correct_under_attack", "worst_class"]
