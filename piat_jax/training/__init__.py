"""The training loop: a pure step, a compiled epoch, and the work between epochs."""

from piat_jax.training.epoch import Recipe, TrainingDivergedError, run_epoch, train_steps
from piat_jax.training.examples import Examples
from piat_jax.training.loop import EpochRecord, fit
from piat_jax.training.optimizer import build_optimizer, sgd
from piat_jax.training.schedules import build_rate, piecewise_linear
from piat_jax.training.step import init_state, train_step
from piat_jax.training.stopping import Position, StopSignals, StopTraining

__all__ = [
    "EpochRecord",
    "Examples",
    "Position",
    "Recipe",
    "StopSignals",
    "StopTraining",
    "TrainingDivergedError",
    "build_optimizer",
    "build_rate",
    "fit",
    "init_state",
    "piecewise_linear",
    "run_epoch",
    "sgd",
    "train_step",
    "train_steps",
]
