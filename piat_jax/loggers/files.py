"""A run's metrics on disk: metrics.jsonl (one object per epoch) and metrics.csv."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from piat_jax.core.files import expanded, unwritable, write_file
from piat_jax.core.multihost import is_first

METRICS = "metrics.jsonl"


class MetricsWriter:
    """Appends one record per epoch; only the first process writes, and all processes have the records.

    The files are part of the run: they are always written, and a full disk stops the run.

    Args:
      folder: the run's folder.
      records: for a resumed run, the records in its checkpoint; later records in the file are dropped.
    """

    def __init__(self, folder: str | Path, *, records: Sequence[Mapping[str, Any]] = ()):
        self.folder = expanded(folder)
        self.records = [dict(record) for record in records]
        self.jsonl = self.folder / METRICS
        if not is_first():
            return
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        write_file(self.jsonl, lambda file: file.write(lines.encode()))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one epoch's record; it must contain `epoch`, and all other values are numbers.

        Raises:
          InputError: the file cannot be written; earlier records are kept.
        """
        self.records.append(dict(record))
        if not is_first():
            return
        try:
            with self.jsonl.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise unwritable(self.jsonl, error) from error
        # The entire file is rewritten, as a later epoch may have additional columns.
        columns = list(dict.fromkeys(name for record in self.records for name in record))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(self.records)
        write_file(self.folder / "metrics.csv", lambda file: file.write(table.getvalue().encode()))


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Read the records in a run folder, oldest first; an incomplete last line is left out."""
    path = expanded(folder) / METRICS
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
