"""Whole experiments: a config is resolved once into an `Experiment`, which is trained and evaluated in a `Run`.

Only `config` reads config files. `train` and `evaluate` are plain functions that report to a listener.
"""

from piat_jax.experiment.config import default_config, load, resolve
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.run import Run
from piat_jax.experiment.run_corruptions import evaluate_corruptions
from piat_jax.experiment.run_evaluation import EvaluationListener, evaluate
from piat_jax.experiment.run_training import Listener, train
from piat_jax.experiment.run_transfer import evaluate_transfer, source_of

__all__ = [
    "EvaluationListener",
    "Experiment",
    "Listener",
    "Run",
    "default_config",
    "evaluate",
    "evaluate_corruptions",
    "evaluate_transfer",
    "load",
    "resolve",
    "source_of",
    "train",
]
