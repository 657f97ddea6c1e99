"""What AutoAttack says while it runs: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from piat_jax.evaluation import AttackProgress
from piat_jax.training.progress import duration

SECONDS_BETWEEN_LINES = 30.0


class AttackProgressBar:
    """A report for `AutoAttack.run`, used in a `with`."""

    def __init__(self, what: str):
        self.what, self.last = what, time.perf_counter()
        self.bar: Bar | None = None
        if sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[state]}"),
                TimeElapsedColumn(),
                TextColumn("left {task.fields[left]}"),
            )
            self.bar = Bar(*columns, console=Console(), transient=True)
            self.task = self.bar.add_task(what, total=1.0, state="", left="?")

    def __enter__(self) -> "AttackProgressBar":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, progress: AttackProgress) -> None:
        """After a block."""
        state = f"{progress.attack} {progress.done}/{progress.total}  robust {progress.robust}/{progress.examples}"
        left = duration(progress.left)
        if self.bar:
            share = progress.elapsed / (progress.elapsed + progress.left)
            self.bar.update(self.task, completed=share, state=state, left=left)
        elif time.perf_counter() - self.last > SECONDS_BETWEEN_LINES:
            self.last = time.perf_counter()
            print(f"{self.what}  {state}  left at most {left}", flush=True)
