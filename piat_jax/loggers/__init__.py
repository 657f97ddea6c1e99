"""Loggers for a run's records: its files, TensorBoard, Weights & Biases, MLflow, or your own logger."""

from piat_jax.loggers.base import LOGGERS, Logger, RunInfo, logger
from piat_jax.loggers.files import METRICS, MetricsWriter, read_metrics
from piat_jax.loggers.ml_flow import MLflow
from piat_jax.loggers.tensorboard import TensorBoard, has_tensorboard
from piat_jax.loggers.trackers import Trackers, check_installed, check_loggers
from piat_jax.loggers.weights_and_biases import WeightsAndBiases

__all__ = [
    "LOGGERS",
    "METRICS",
    "Logger",
    "MLflow",
    "MetricsWriter",
    "RunInfo",
    "TensorBoard",
    "Trackers",
    "WeightsAndBiases",
    "check_installed",
    "check_loggers",
    "has_tensorboard",
    "logger",
    "read_metrics",
]
