"""What an attack of the ensemble hands back."""

from typing import NamedTuple

from piat_jax.core.types import Array


class Outcome(NamedTuple):
    """What an attack of the ensemble leaves of a block of examples."""

    images: Array  # [B, H, W, C]; where fooled the adversarial image, elsewhere the clean one
    fooled: Array  # [B] bool, misclassified (or as its goal) inside ball and box, by the attack's own forwards
    queries: Array  # [B] int32, forwards spent on each example (a forward-and-backward counts as one)
