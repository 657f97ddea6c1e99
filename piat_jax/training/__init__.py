"""The training loop: pure step, compiled epoch, and the order of things between epochs."""

from piat_jax.training.epoch import Examples, Recipe, TrainingDivergedError, run_epoch, train_steps
from piat_jax.training.loop import EpochRecord, fit
from piat_jax.training.optimizer import piecewise_linear, sgd
from piat_jax.training.step import init_state, train_step

__all__ = [
    "EpochRecord",
    "Examples",
    "Recipe",
    "TrainingDivergedError",
    "fit",
    "init_state",
    "piecewise_linear",
    "run_epoch",
    "sgd",
    "train_step",
    "train_steps",
]
