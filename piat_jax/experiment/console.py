"""Printed progress of training and evaluation: a bar on a terminal, plain lines elsewhere and in notebooks."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from piat_jax.core.files import command
from piat_jax.evaluation import AttackProgress, Robustness, UnionRobustness
from piat_jax.evaluation.corruptions import CorruptionAccuracy
from piat_jax.evaluation.minimum_norm import MinimumNorms
from piat_jax.experiment.run import Run
from piat_jax.experiment.run_corruptions import CorruptionListener
from piat_jax.experiment.run_evaluation import EvaluationListener
from piat_jax.experiment.run_training import Listener, Started
from piat_jax.training.progress import TrainingProgress, duration

SECONDS_BETWEEN_LINES = 30.0


def note(text: str) -> None:
    """Print a note on stderr."""
    print(f"note: {text}", file=sys.stderr)


class TrainingConsole(Listener):
    """Prints the progress of `train`."""

    progress: TrainingProgress | None = None

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def note(self, text: str) -> None:
        """Print a note on stderr."""
        note(text)

    def started(self, begun: Started) -> None:
        """Print the method, the network, the data, the devices and the folder."""
        experiment, at = begun.experiment, begun.at
        where = f", from epoch {at.epoch}" + (f", step {at.steps + 1}" if at.steps else "")
        eps, device = experiment.attack.eps, jax.devices()[0].device_kind
        self.say(
            f"{experiment.method}: {experiment.model.name} ({begun.parameters:,} parameters) on "
            f"{experiment.dataset.name} ({begun.examples:,} images), {experiment.epochs} epochs, eps {eps:.4g} = "
            f"{255 * eps:.3g}/255, {begun.devices} x {device}, in {begun.run.folder}{where if begun.resumed else ''}"
        )
        images = begun.steps * experiment.batch_size
        self.progress = TrainingProgress(experiment.epochs, first_epoch=at.epoch, images_per_epoch=images)

    def chunk(self, epoch: int, done: int, total: int) -> None:
        """Move the bar."""
        assert self.progress is not None
        self.progress.chunk(epoch, done, total)

    def epoch(self, epoch: int, values: Mapping[str, float], images_per_second: float) -> None:
        """Print a line for each epoch."""
        assert self.progress is not None
        self.progress.epoch(epoch, values, images_per_second)

    def closed(self) -> None:
        """Remove the bar."""
        if self.progress:
            self.progress.close()

    def done(self, run: Run, text: str = "") -> None:
        """Print the command that evaluates the run; `text` is the config it needs, if any."""
        given = {"config": text} if text else {}
        took = duration(self.progress.elapsed()) if self.progress else "no time"
        self.say(f"done in {took}; evaluate with: {command('piat-evaluate', workdir=run.folder, **given)}")


class EvaluationConsole(EvaluationListener):
    """Prints the progress of `evaluate`."""

    def note(self, text: str) -> None:
        """Print a note on stderr."""
        note(text)

    @contextmanager
    def attacking(self, run: Run, checkpoint: str) -> Iterator[Any]:
        """Show a bar, or print a line now and then."""
        what = f"{run.folder}  {checkpoint}"
        if sys.stdout.isatty():
            with attack_bar(what) as report:
                yield report
        else:
            yield AttackLines(what)

    def attacked(self, found: Robustness | UnionRobustness) -> None:
        """Print AutoAttack's table."""
        print(found, flush=True)

    def measured(self, attack: str, found: MinimumNorms) -> None:
        """Print the median norm."""
        print(f"{attack}: {found}", flush=True)

    def accuracy(
        self,
        run: Run,
        checkpoint: str,
        epoch: int,
        attack: str,
        value: float,
        seconds: float | None,
        worst: tuple[str, float] | None = None,
    ) -> None:
        """Print a line."""
        took = "known" if seconds is None else duration(seconds)
        of_class = f"  worst class {worst[0]} {100 * worst[1]:.2f}%" if worst else ""
        where = f"{run.folder}  {checkpoint} (epoch {epoch})"
        print(f"{where}  {attack} {100 * value:.2f}%{of_class}  {took}", flush=True)


class CorruptionConsole(CorruptionListener):
    """Prints the progress of `evaluate_corruptions`."""

    def note(self, text: str) -> None:
        """Print a note on stderr."""
        note(text)

    def corrupted(self, run: Run, checkpoint: str, epoch: int, name: str, values: Sequence[float]) -> None:
        """Print a line."""
        each = " ".join(f"{100 * value:.2f}" for value in values)
        mean = 100 * sum(values) / len(values)
        print(
            f"{run.folder}  {checkpoint} (epoch {epoch})  {name} {mean:.2f}%  at severities 1 to 5: {each}", flush=True
        )

    def all_corrupted(self, run: Run, checkpoint: str, found: CorruptionAccuracy) -> None:
        """Print a line."""
        kind = "mCE relative to AlexNet" if found.is_normalised else "mean error, not normalised"
        mean = f"clean {100 * found.clean:.2f}%  mean over corruptions {100 * found.mean:.2f}%"
        print(f"{run.folder}  {checkpoint}  {mean}  {kind} {100 * found.mce:.2f}%", flush=True)


class AttackLines:
    """A progress callback for `AutoAttack.run` that prints a line now and then."""

    def __init__(self, what: str):
        self.what, self.last = what, time.perf_counter()

    def __call__(self, progress: AttackProgress) -> None:
        """Report the progress after a block."""
        if time.perf_counter() - self.last > SECONDS_BETWEEN_LINES:
            self.last = time.perf_counter()
            print(f"{self.what}  {_state(progress)}  left at most {duration(progress.left)}", flush=True)


@contextmanager
def attack_bar(what: str) -> Iterator[Any]:
    """A progress callback for `AutoAttack.run` that moves a bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TextColumn("left {task.fields[left]}"),
    )
    with Progress(*columns, console=Console(), transient=True) as bar:
        task = bar.add_task(what, total=1.0, state="", left="?")

        def report(progress: AttackProgress) -> None:
            share = progress.elapsed / (progress.elapsed + progress.left)
            bar.update(task, completed=share, state=_state(progress), left=duration(progress.left))

        yield report


def _state(progress: AttackProgress) -> str:
    done = f"{progress.attack} {progress.done}/{progress.total}"
    return f"{done}  robust {progress.robust}/{progress.examples}"
