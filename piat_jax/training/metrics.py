"""A run's metrics on disk: metrics.jsonl (one object per epoch), metrics.csv, and TensorBoard events."""

import csv
import importlib
import importlib.util
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsWriter:
    """Appends one record per epoch; a resumed run drops what was written after the epoch it goes on from."""

    def __init__(self, folder: str | Path, *, epochs_done: int = 0, tensorboard: bool = True):
        self.folder = Path(folder)
        self.records = [record for record in read_metrics(self.folder) if record["epoch"] <= epochs_done]
        self.jsonl = self.folder / "metrics.jsonl"
        self.jsonl.write_text("".join(json.dumps(record) + "\n" for record in self.records))
        self.tensorboard = _tensorboard(self.folder, epochs_done) if tensorboard else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one epoch's record; it must hold `epoch`, everything else is a number."""
        self.records.append(dict(record))
        with self.jsonl.open("a") as file:
            file.write(json.dumps(record) + "\n")
        # Rewritten whole: a later epoch may have columns that the first had not.
        columns = list(dict.fromkeys(name for record in self.records for name in record))
        with (self.folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.records)
        if self.tensorboard:
            for name, value in record.items():
                if name != "epoch" and isinstance(value, (int, float)) and math.isfinite(value):
                    tag = re.sub("^(train|test|validation)_", r"\1/", name)
                    self.tensorboard.add_scalar(tag, value, record["epoch"])
            self.tensorboard.flush()

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self.tensorboard:
            self.tensorboard.close()


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a run folder, oldest first; a last line that was cut off is left out."""
    path = Path(folder) / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def has_tensorboard() -> bool:
    """Whether TensorBoard events can be written."""
    return importlib.util.find_spec("tensorboardX") is not None


def _tensorboard(folder: Path, epochs_done: int) -> Any:
    if not has_tensorboard():
        return None
    writer = importlib.import_module("tensorboardX").SummaryWriter
    return writer(str(folder / "tensorboard"), purge_step=epochs_done + 1 if epochs_done else None)
