"""Adversarial training of image classifiers in JAX: PIAT, NMSE and what they are compared with."""

__version__ = "0.1.0"
