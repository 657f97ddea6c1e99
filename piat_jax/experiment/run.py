"""A run's folder: the one place that knows what is in it, and refuses to mix two runs."""

import contextlib
import functools
import json
import os
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
"""What the papers call the two checkpoints, and what they are called on disk."""
# Fields that runs of earlier versions lack, with what they did; what a method has not is not added.
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
# Changing these does not make it another run.
FREE_FIELDS = (
    "epochs",
    "fsdp",
    "nonfinite",
    "average.warmup",  # from there on; earlier versions had none, and the average only observes
    "evaluation.",
    "checkpoint.",
    "log.",
    "dataset.data_dir",
    "dataset.stream",
    "dataset.workers",
    "dataset.on_bad_image",  # as nonfinite: to go on where a bad image stopped it
)


class Run:
    """The run in a folder, or one that is to begin there."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = expanded(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def exists(self) -> bool:
        """Whether there is a run."""
        return (self.folder / CONFIG).exists()

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """Its checkpoints."""
        return Checkpoints.of_run(self.folder)

    def experiment(self) -> Experiment:
        """What it is a run of.

        Raises:
          InputError: there is no run.
        """
        try:
            return Experiment.from_plain(self._plain())
        except InputError as error:
            if "is unknown" not in str(error):
                raise
            raise InputError(
                f"{self.folder}: {error}. If a config file of your own defines it, give that: --config=FILE:METHOD"
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """The record of each epoch that is done."""
        return read_metrics(self.folder)

    def evaluation(self) -> dict[str, Any]:
        """What `evaluate` has found; {} where it has not."""
        path = self.folder / EVALUATION
        return read_json(path) if path.exists() else {}

    def write_evaluation(self, found: Mapping[str, Any]) -> None:
        """Keep what `evaluate` has found."""
        write_json(self.folder / EVALUATION, found)

    def load_evaluated(self, checkpoint: str, like: Variables) -> tuple[Variables, dict[str, Any]]:
        """The weights that "best", "final" or "final:swa" stands for, and the description of their save.

        Raises:
          InputError: it was not saved, cannot be read, or is of another model.
        """
        name, average = parse_checkpoint(checkpoint)
        return self.checkpoints.load_evaluated(name, like, average=average)

    def robustness(self, checkpoint: str, attack: str) -> Path:
        """Where AutoAttack or one of its members keeps what it finds on "best", "final" or "final:swa"."""
        return self.folder / ROBUSTNESS / f"{checkpoint.replace(':', '_')}-{attack}"

    def predictions(self, checkpoint: str, attack: str) -> Path:
        """Where the classes that "best", "final" or "final:swa" predicts under an attack are kept."""
        return predictions.path_of(self.folder, checkpoint, attack)

    def corruptions(self, checkpoint: str) -> Path:
        """Where the accuracies of "best", "final" or "final:swa" under common corruptions are kept."""
        return self.folder / CORRUPTED / f"{checkpoint.replace(':', '_')}.json"

    def drop_robustness(self, checkpoint: str) -> None:
        """Remove what attacks have found on a checkpoint that holds other weights now."""
        for path in (self.folder / ROBUSTNESS).glob(f"{checkpoint.replace(':', '_')}-*"):
            shutil.rmtree(path)
        for path in self.predictions(checkpoint, "").parent.glob(f"{checkpoint.replace(':', '_')}-*"):
            path.unlink()

    def write_diverged(self, report: Mapping[str, Any]) -> None:
        """Keep where a loss became infinite or NaN."""
        write_json(self.folder / DIVERGED, report)

    def check_free(
        self, experiment: Experiment, *, resume: bool, overwrite: bool, free: Sequence[str] = FREE_FIELDS
    ) -> None:
        """Raise InputError unless a run of this experiment may be written to the folder; writes nothing.

        A folder without a run must be empty or not exist. One that holds a run needs `resume` (the same experiment, up
        to how long and how it is evaluated: the fields that begin with one of `free`) or `overwrite`.
        """
        folder = str(self.folder)
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other; give one")
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"workdir={folder!r} is a file; give a folder")
        if not self.exists:
            if self.folder.exists() and any(path.name != LOCK for path in self.folder.iterdir()):
                raise InputError(f"workdir={folder!r} holds files that are not of a run; give a new or empty folder")
            return
        if overwrite:
            return
        idle = ("attack.l2_rule",) if experiment.attack.norm.lower() == "linf" else ()  # decides nothing there
        changed = [line for line in differences(self._plain(), experiment.plain()) if not line.startswith(idle)]
        if not resume:
            if changed:
                raise InputError(
                    f"workdir={folder!r} holds another run ({'; '.join(changed)}); "
                    "give another folder, or --overwrite to replace it"
                )
            raise InputError(
                f"workdir={folder!r} holds this run with {len(self.metrics())} of {experiment.epochs} epochs done; "
                "give --resume to go on, or --overwrite to start again"
            )
        other = [line for line in changed if not line.startswith(tuple(free))]
        if other:
            raise InputError(
                f"workdir={folder!r} holds another run ({'; '.join(other)}) and cannot be resumed with this config; "
                "give the same config, or another folder"
            )

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Raise InputError where the run was begun with other data; older runs do not say.

        Args:
          data: what `describe_data` makes of the data that it would go on with.
        """
        if not (self.folder / DATA).exists():
            return
        if changed := differences(read_json(self.folder / DATA), data):
            raise InputError(
                f"workdir={str(self.folder)!r} was begun with other data ({'; '.join(changed)}) and cannot be resumed "
                "with these; give those files (dataset.name, dataset.data_dir), or another folder"
            )

    def hold_out_how(self) -> str:
        """How the run holds examples out of training; older ones, which do not say, take the last ones."""
        if (self.folder / DATA).exists():
            return read_json(self.folder / DATA)["hold_out"]
        return "last" if self.exists else "by class"

    @contextlib.contextmanager
    def locked(self, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Make the folder this process's own; it is created where it does not exist.

        The kernel ends the lock with the process, however that ends. File systems without locks go without, which
        `note` is told.

        Raises:
          InputError: another process trains in it, or it cannot be written.
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
                    note(f"{self.folder} cannot be locked ({error.strerror}); start no second run in it")
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def open(self, experiment: Experiment, *, overwrite: bool = False, data: Mapping[str, Any] | None = None) -> None:
        """Create the folder, or empty it of the run it held, and write what is known before training.

        `data` describes the data that is trained on, where there is some.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for name in OWN_FILES:
                path = self.folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if data:
            write_json(self.folder / DATA, data)  # first: a config without it is an older version's
        write_json(self.folder / CONFIG, experiment.plain())
        write_json(self.folder / DESCRIPTION, describe_run())

    def _plain(self) -> dict[str, Any]:
        """The saved fields with what was added since."""
        if not self.exists:
            raise InputError(f"workdir={str(self.folder)!r} holds no run: there is no {CONFIG}; piat-train writes it")
        plain = read_json(self.folder / CONFIG)
        if "method" not in plain:
            raise InputError(f"{self.folder / CONFIG} is none of a run: it has no method; give the folder of a run")
        average = parse_method(plain["method"]).average
        of_average = average_fields(average) if average else {}
        for path, value in LATER.items():
            group, _, name = path.rpartition(".")
            fields = plain.get(group) if group else plain
            if isinstance(fields, dict) and (group != "average" or name in of_average):
                fields.setdefault(name, value)
        return plain


def parse_checkpoint(checkpoint: str) -> tuple[str, str]:
    """What a checkpoint is called on disk, and which further average of it is meant; "" is none.

    Raises:
      InputError: it begins with neither "best" nor "final".

    >>> parse_checkpoint("best"), parse_checkpoint("final:swa")
    (('best', ''), ('last', 'swa'))
    """
    name, _, average = checkpoint.partition(":")
    check_choice("checkpoint", name, ON_DISK)
    return ON_DISK[name], average


def checkpoints_of(experiment: Experiment) -> tuple[str, ...]:
    """What is evaluated unless something else is asked for: best, final, and final of each further average."""
    return (*ON_DISK, *(f"final:{name}" for name in experiment.further))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file, or an InputError that names it."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error})") from error
