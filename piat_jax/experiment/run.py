"""A run's folder: reads and writes its files, and refuses to mix two runs."""

import contextlib
import functools
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from piat_jax.analysis import predictions
from piat_jax.analysis.runs import CONFIG, EVALUATION, METRICS
from piat_jax.averaging import average_fields
from piat_jax.checkpoint import Checkpoints
from piat_jax.core.checks import InputError, check_choice
from piat_jax.core.files import expanded, unwritable, write_json
from piat_jax.core.types import Variables
from piat_jax.experiment.experiment import Experiment, differences
from piat_jax.experiment.methods import parse_method
from piat_jax.experiment.provenance import describe_run
from piat_jax.loggers import read_metrics

DATA = "data.json"
DESCRIPTION = "run.json"
DIVERGED = "diverged.json"
LOCK = "lock"
ROBUSTNESS = "robustness"
CORRUPTED = "corruptions"
OWN_FILES = (
    CONFIG,
    DATA,
    DESCRIPTION,
    METRICS,
    "metrics.csv",
    EVALUATION,
    Checkpoints.FOLDER,
    DIVERGED,
    ROBUSTNESS,
    CORRUPTED,
    predictions.FOLDER,
    "tensorboard",
    "wandb",
    "trackers.json",
    "report",
)
ON_DISK = {"best": "best", "final": "last"}
"""The papers' names of the two checkpoints, and their names on disk."""
# Fields that runs of earlier versions lack, with the values of their behaviour; only a method's fields are added.
LATER = {
    "nonfinite": "stop",
    "fsdp": False,
    "microbatches": 1,
    "evaluation.attack_precision": "same",
    "model.bn_groups": 1,
    "dataset.policy": "",
    "dataset.policy_operations": 2,
    "dataset.policy_magnitude": 9,
    "dataset.cutout": 0,
    "dataset.erasing": 0.0,
    "dataset.extra": "",
    "dataset.extra_fraction": 0.7,
    "dataset.extra_weights": (),
    "dataset.extra_smoothing": (0.0,),
    "dataset.epoch_steps": 0,
    "dataset.stream": False,
    "dataset.image_size": 0,
    "dataset.resize": 0,
    "dataset.resizing": "short",
    "dataset.test_list": "",
    "dataset.interpolation": "bilinear",
    "dataset.crop_scale": (0.08, 1.0),
    "dataset.workers": 0,
    "dataset.on_bad_image": "stop",
    "model.weights": "",
    "optimizer.max_norm": 0.0,
    "rpat.alpha_from": "fixed",
    "attack.l2_rule": "exact",
    "average.warmup": False,
    "average.batch_stats": "interpolate",
    "model.bn_momentum": 0.1,
    "attack.name": "pgd",
    "attack.sparsity": 0.01,
    "optimizer.name": "sgd",
    "optimizer.nesterov": False,
    "optimizer.weight_decay_on": "all",
    "optimizer.layer_decay": 1.0,
    "optimizer.schedule": "piecewise_linear",
    "optimizer.lr_unit": "epochs",
    "optimizer.lr_every": "epoch",
    "objective.label_smoothing": 0.0,
    "objective.smoothing_over": "others",
    "evaluation.union_eps": (8 / 255, 0.5, 12.0),
    "log.to": (),
    "log.images": 0,
}
KNOTS = ("lr_epochs", "lr_drops", "lr_warmup", "lr_peak")
"""Optimizer fields that are positions in the run: with lr_unit="epochs" they scale with the number of epochs."""
# Changing these does not make it a different run.
FREE_FIELDS = (
    "epochs",
    "fsdp",
    "nonfinite",
    "average.warmup",  # takes effect from then on; earlier versions had none, and the average only observes
    "evaluation.",
    "checkpoint.",
    "log.",
    "dataset.data_dir",
    "dataset.stream",
    "dataset.workers",
    "dataset.on_bad_image",  # like nonfinite: to resume after a bad image stopped the run
)


class Run:
    """The run in a folder, or one that will begin there."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = expanded(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / CONFIG).exists()

    @property
    def is_begun(self) -> bool:
        """Whether the run has left anything that a new start would lose: a checkpoint, metrics or results."""
        kept = (Checkpoints.FOLDER, METRICS, EVALUATION, DIVERGED, ROBUSTNESS, CORRUPTED, predictions.FOLDER)
        return self.exists and any(map(_has_content, (self.folder / name for name in kept)))

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints.of_run(self.folder)

    def experiment(self) -> Experiment:
        """The run's experiment, from its saved config.

        Raises:
          InputError: there is no run.
        """
        try:
            return Experiment.from_plain(self._plain())
        except InputError as error:
            if "is unknown" not in str(error):
                raise
            raise InputError(
                f'{self.folder}: {error}. If a file of yours defines it, import the file, or give config="FILE" '
                "(--config=FILE)"
            ) from error

    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of the images it was trained on; None if the run does not store them."""
        path = self.folder / DATA
        shape = read_json(path).get("train", {}).get("image_shape") if path.exists() else None
        return tuple(shape) if shape else None

    def metrics(self) -> list[dict[str, Any]]:
        """The record of each completed epoch."""
        return read_metrics(self.folder)

    def evaluation(self) -> dict[str, Any]:
        """The results of `evaluate`; {} if there are none."""
        path = self.folder / EVALUATION
        return read_json(path) if path.exists() else {}

    def write_evaluation(self, found: Mapping[str, Any]) -> None:
        """Write the results of `evaluate`."""
        write_json(self.folder / EVALUATION, found)

    def load_evaluated(self, checkpoint: str, like: Variables) -> tuple[Variables, dict[str, Any]]:
        """Load the weights of "best", "final" or "final:swa", and the description of their save.

        Raises:
          InputError: the checkpoint was not saved, cannot be read, or has another model.
        """
        name, average = parse_checkpoint(checkpoint)
        return self.checkpoints.load_evaluated(name, like, average=average)

    def robustness(self, checkpoint: str, attack: str) -> Path:
        """The folder for results of AutoAttack or one of its members on "best", "final" or "final:swa"."""
        return self.folder / ROBUSTNESS / f"{checkpoint.replace(':', '_')}-{attack}"

    def predictions(self, checkpoint: str, attack: str) -> Path:
        """The file for the classes that "best", "final" or "final:swa" predicts under an attack."""
        return predictions.path_of(self.folder, checkpoint, attack)

    def corruptions(self, checkpoint: str) -> Path:
        """The file for accuracies of "best", "final" or "final:swa" under common corruptions."""
        return self.folder / CORRUPTED / f"{checkpoint.replace(':', '_')}.json"

    def drop_robustness(self, checkpoint: str) -> None:
        """Remove the attack results of a checkpoint that now has other weights."""
        for path in (self.folder / ROBUSTNESS).glob(f"{checkpoint.replace(':', '_')}-*"):
            shutil.rmtree(path)
        for path in self.predictions(checkpoint, "").parent.glob(f"{checkpoint.replace(':', '_')}-*"):
            path.unlink()

    def write_diverged(self, report: Mapping[str, Any]) -> None:
        """Write the report of a loss that became infinite or NaN."""
        write_json(self.folder / DIVERGED, report)

    def check_free(
        self, experiment: Experiment, *, resume: bool, overwrite: bool, free: Sequence[str] = FREE_FIELDS
    ) -> None:
        """Raise InputError unless a run of this experiment may be written to the folder; writes nothing.

        A folder without a run must be empty or not exist. One with a run needs `overwrite`, or `resume` with the
        same experiment; only fields that begin with one of `free` (its length and evaluation) may differ. A run that
        ended before its first save may be started again.
        """
        folder = str(self.folder)
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other; give one")
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"workdir={folder!r} is a file; give a folder")
        if not self.exists:
            if self.folder.exists() and any(path.name != LOCK for path in self.folder.iterdir()):
                raise InputError(
                    f"workdir={folder!r} holds files that do not belong to a run; give a new or empty folder"
                )
            return
        if overwrite or not (resume or self.is_begun):
            return
        idle = ("attack.l2_rule",) if experiment.attack.norm.lower() == "linf" else ()  # has no effect there
        changed = [line for line in differences(self._plain(), experiment.plain()) if not line.startswith(idle)]
        if not resume:
            if changed:
                raise InputError(
                    f"workdir={folder!r} holds another run ({'; '.join(changed)}); "
                    "give another folder, or --overwrite (in Python overwrite=True) to replace it"
                )
            raise InputError(
                f"workdir={folder!r} holds this run with {len(self.metrics())} of {experiment.epochs} epochs done; "
                "give --resume to continue, or --overwrite to start again (in Python resume=True, overwrite=True)"
            )
        other = [line for line in changed if not line.startswith(tuple(free))]
        if other:
            # The learning-rate knots follow the number of epochs.
            if epochs := [line for line in changed if line.startswith("epochs:")]:
                other = epochs + [
                    line for line in other if not line.startswith(tuple(f"optimizer.{k}:" for k in KNOTS))
                ]
            raise InputError(
                f"workdir={folder!r} holds another run ({'; '.join(other)}) and cannot be resumed with this config; "
                f"piat-train --resume {shlex.quote(folder)} takes the run's own (in Python config=None, resume=True); "
                "or give another folder"
            )

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Raise InputError if the run began with other data; older runs did not store this.

        Args:
          data: the description, from `describe_data`, of the data to continue with.
        """
        if not (self.folder / DATA).exists():
            return
        if changed := differences(read_json(self.folder / DATA), data):
            raise InputError(
                f"workdir={str(self.folder)!r} began with other data ({'; '.join(changed)}) and cannot be resumed "
                "with these; give the original files (dataset.name, dataset.data_dir), or another folder"
            )

    def hold_out_how(self) -> str:
        """How the run holds examples out of training; older runs, which did not store it, hold out the last ones."""
        if (self.folder / DATA).exists():
            return read_json(self.folder / DATA)["hold_out"]
        return "last" if self.exists else "by class"

    @contextlib.contextmanager
    def locked(self, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Lock the folder for this process; it is created if it does not exist.

        The kernel releases the lock when the process ends, in whatever way. If the file system has no locks, `note`
        is called and the folder is not locked.

        Raises:
          InputError: another process trains in the folder, or it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / LOCK).open("a+")
        except OSError as error:
            raise unwritable(self.folder, error) from error
        with file:
            with contextlib.suppress(ImportError):  # as on Windows
                import fcntl

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    file.seek(0)
                    raise InputError(
                        f"workdir={str(self.folder)!r} is in use by process {file.read().strip() or 'unknown'}, which "
                        "trains in it; wait for it, or give another folder"
                    ) from error
                except OSError as error:
                    note(f"{self.folder} cannot be locked ({error.strerror}); do not start a second run in it")
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def open(self, experiment: Experiment, *, overwrite: bool = False, data: Mapping[str, Any] | None = None) -> None:
        """Create the folder, or remove the run in it, and write the files that are known before training.

        `data` describes the training data, if there is any.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for name in OWN_FILES:
                path = self.folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if data:
            write_json(self.folder / DATA, data)  # first: a config without it means an older version
        write_json(self.folder / CONFIG, experiment.plain())
        write_json(self.folder / DESCRIPTION, describe_run())

    def _plain(self) -> dict[str, Any]:
        """The saved fields, with fields that were added in later versions."""
        if not self.exists:
            raise InputError(f"workdir={str(self.folder)!r} holds no run: there is no {CONFIG}; piat-train writes it")
        plain = read_json(self.folder / CONFIG)
        if "method" not in plain:
            raise InputError(f"{self.folder / CONFIG} is not a run's: it has no method; give the folder of a run")
        average = parse_method(plain["method"]).average
        of_average = average_fields(average) if average else {}
        for path, value in LATER.items():
            group, _, name = path.rpartition(".")
            fields = plain.get(group) if group else plain
            if isinstance(fields, dict) and (group != "average" or name in of_average):
                fields.setdefault(name, value)
        return plain


def parse_checkpoint(checkpoint: str) -> tuple[str, str]:
    """A checkpoint's name on disk, and its further average ("" = none).

    Raises:
      InputError: the name begins with neither "best" nor "final".

    >>> parse_checkpoint("best"), parse_checkpoint("final:swa")
    (('best', ''), ('last', 'swa'))
    """
    name, _, average = checkpoint.partition(":")
    check_choice("checkpoint", name, ON_DISK)
    return ON_DISK[name], average


def checkpoints_of(experiment: Experiment) -> tuple[str, ...]:
    """The checkpoints that are evaluated by default: best, final, and final of each further average."""
    return (*ON_DISK, *(f"final:{name}" for name in experiment.further))


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file, or raise an InputError that names it."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error})") from error
