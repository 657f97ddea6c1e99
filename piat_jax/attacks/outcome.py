"""The result of an attack in AutoAttack's ensemble."""

from typing import NamedTuple

from piat_jax.core.types import Array


class Outcome(NamedTuple):
    """The result of an ensemble's attack on a block of examples."""

    images: Array  # [B, H, W, C]; the adversarial image where fooled, else the clean one
    fooled: Array  # [B] bool, misclassified (or classified as the goal) in ball and box, by the attack's own forwards
    queries: Array  # [B] int32, forwards spent on each example (a forward-and-backward counts as one)
