"""Progress output of a run: a bar on a terminal, plain lines elsewhere, fewer lines in a notebook."""

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

MOST_LINES = 100
"""The most lines that a run prints in a notebook."""


class TrainingProgress:
    """Prints one line per epoch (in a notebook, per several epochs), and on a terminal a bar for the whole run.

    The bar shows images per second and the time left.
    """

    def __init__(self, epochs: int, *, first_epoch: int, images_per_epoch: int):
        self.epochs, self.first_epoch, self.images_per_epoch = epochs, first_epoch, images_per_epoch
        self.began = time.perf_counter()
        self.first_seconds: float | None = None  # of the first epoch, which compiles
        self.bar: Progress | None = None
        self.every = -(-epochs // MOST_LINES) if in_notebook() else 1
        if sys.stdout.isatty():
            columns = (
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.fields[rate]:,.0f} img/s"),
                TimeElapsedColumn(),
                TextColumn("left {task.fields[left]}"),
            )
            self.bar = Progress(*columns, console=Console(), transient=True)
            self.task = self.bar.add_task("train", total=epochs, epoch="", rate=0.0, left="?")
            self.bar.start()

    def chunk(self, epoch: int, done: int, total: int) -> None:
        """Report the steps done within an epoch."""
        if not self.bar:
            return
        finished = epoch - 1 + done / total
        self.bar.update(
            self.task,
            completed=finished,
            epoch=f"{epoch}/{self.epochs}",
            rate=self.images_per_epoch / max(self._seconds_per_epoch(finished), 1e-9),
            left=duration(self._left(finished)),
        )

    def epoch(self, epoch: int, values: Mapping[str, float], images_per_second: float) -> None:
        """Report the end of an epoch; all `values` except losses are shares, shown in percent."""
        if self.first_seconds is None:
            self.first_seconds = self.elapsed()
        if epoch % self.every and epoch != self.epochs:
            return
        shown = "  ".join(f"{name} {_show(name, value)}" for name, value in values.items())
        width = len(str(self.epochs))
        line = f"epoch {epoch:{width}d}/{self.epochs}  {shown}  {images_per_second:,.0f} img/s"
        line += f"  left {duration(self._left(epoch))}"
        if self.bar:
            self.bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.began

    def close(self) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()

    def _left(self, finished: float) -> float:
        return self._seconds_per_epoch(finished) * (self.epochs - finished)

    def _seconds_per_epoch(self, finished: float) -> float:
        """The mean so far, without the first epoch, which compiles, as soon as there is another."""
        later = finished - self.first_epoch
        if self.first_seconds is not None and later > 0:
            return (self.elapsed() - self.first_seconds) / later
        return self.elapsed() / max(later + 1, 1e-9)


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, which keeps every printed line.

    >>> in_notebook()
    False
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def duration(seconds: float) -> str:
    """Seconds as readable text.

    >>> duration(75), duration(3.2), duration(7260)
    ('1m15s', '3s', '2h01m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _show(name: str, value: float) -> str:
    return f"{value:.3f}" if "loss" in name else f"{100 * value:.2f}%"
