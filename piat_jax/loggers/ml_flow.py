"""MLflow logger: to the server of MLFLOW_TRACKING_URI, else to a database in the folder `mlflow` next to the run's."""

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
"""Maximum number of parameters per call to a server."""
LONGEST = 500
"""Maximum length of a parameter that every server accepts."""


@logger(NAME, title="MLflow", summary="A run of MLflow; in a local database unless MLFLOW_TRACKING_URI is set.")
class MLflow(Logger):
    """Logs to MLflow, in the experiment piat_jax or MLFLOW_EXPERIMENT_NAME; the id is stored in the run's folder."""

    package, extra = "mlflow", "mlflow"

    def start(self, info: RunInfo) -> None:
        """Begin a run with the config as its parameters, or continue the one stored in the folder."""
        # With a separate client, so that other uses of mlflow in this process are not affected.
        self.mlflow = importlib.import_module("mlflow")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # hides messages about its database tables
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
        """Log every number."""
        metric, now = self.mlflow.entities.Metric, int(1000 * time.time())
        points = [metric(name, float(value), now, step) for name, value in numbers(record).items()]
        self.client.log_batch(self.run_id, metrics=points)

    def images(self, name: str, image: np.ndarray, caption: str, step: int) -> None:
        """Log the picture under its epoch, and its caption."""
        self.client.log_image(self.run_id, image, key=name, step=step)
        self.text(f"{name}/epoch{step}", caption, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Store the text as an artifact of the run."""
        self.client.log_text(self.run_id, text, f"{name}.txt")

    def close(self, *, finished: bool = True) -> None:
        """End the run; a stopped run counts as killed."""
        self.client.set_terminated(self.run_id, status="FINISHED" if finished else "KILLED")

    def _params(self, fields: Mapping[str, Any]) -> None:
        param = self.mlflow.entities.Param
        found = [param(name, str(value)[:LONGEST]) for name, value in leaves(fields).items()]
        for start in range(0, len(found), AT_ONCE):
            self.client.log_batch(self.run_id, params=found[start : start + AT_ONCE])


def _name(folder: Path) -> str:
    return os.environ.get("MLFLOW_RUN_NAME") or folder.absolute().name
