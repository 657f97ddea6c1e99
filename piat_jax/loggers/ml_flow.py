"""MLflow: the server of MLFLOW_TRACKING_URI, else a database in the folder `mlflow` beside the run's."""

import importlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.nested import leaves
from piat_jax.loggers.base import Logger, RunInfo, logger, numbers
from piat_jax.loggers.ids import keep_id, read_id

NAME = "mlflow"
AT_ONCE = 100
"""Parameters that a server takes in one call."""
LONGEST = 500
"""Letters of a parameter that every server takes."""


@logger(NAME, title="MLflow", summary="A run of MLflow; in a local database unless MLFLOW_TRACKING_URI says where.")
class MLflow(Logger):
    """A run whose id is kept in the run's folder, in the experiment piat_jax or that of MLFLOW_EXPERIMENT_NAME."""

    package, extra = "mlflow", "mlflow"

    def start(self, info: RunInfo) -> None:
        """Begin a run with the config as its parameters, or go on with that of the folder."""
        # By a client of its own: what the process does with mlflow beside it stays what it is.
        self.mlflow = importlib.import_module("mlflow")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # how it makes its tables is no news
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            folder = info.folder.absolute().parent / "mlflow"
            folder.mkdir(exist_ok=True)
            uri, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
        self.client = self.mlflow.MlflowClient(tracking_uri=uri)
        self.run_id = read_id(info.folder, NAME) if info.resumed else ""
        if self.run_id:
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "piat_jax")
            found = self.client.get_experiment_by_name(experiment)
            parent = found.experiment_id if found else self.client.create_experiment(experiment, artifacts)
            self.run_id = self.client.create_run(parent, run_name=_name(info.folder)).info.run_id
            keep_id(info.folder, NAME, self.run_id)
            self._params(info.config)  # they cannot be changed later
        self.text("config", json.dumps(info.config, indent=2), info.epochs_done)

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """A point of every number."""
        metric, now = self.mlflow.entities.Metric, int(1000 * time.time())
        points = [metric(name, float(value), now, step) for name, value in numbers(record).items()]
        self.client.log_batch(self.run_id, metrics=points)

    def images(self, name: str, image: np.ndarray, caption: str, step: int) -> None:
        """The picture by its epoch, and its caption beside it."""
        self.client.log_image(self.run_id, image, key=name, step=step)
        self.text(f"{name}/epoch{step}", caption, step)

    def text(self, name: str, text: str, step: int) -> None:
        """A file among the run's artifacts."""
        self.client.log_text(self.run_id, text, f"{name}.txt")

    def close(self, *, finished: bool = True) -> None:
        """End the run; one that was stopped counts as killed."""
        self.client.set_terminated(self.run_id, status="FINISHED" if finished else "KILLED")

    def _params(self, fields: Mapping[str, Any]) -> None:
        param = self.mlflow.entities.Param
        found = [param(name, str(value)[:LONGEST]) for name, value in leaves(fields).items()]
        for start in range(0, len(found), AT_ONCE):
            self.client.log_batch(self.run_id, params=found[start : start + AT_ONCE])


def _name(folder: Path) -> str:
    return os.environ.get("MLFLOW_RUN_NAME") or folder.absolute().name
