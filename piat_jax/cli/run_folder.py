"""A run's folder: what is in it, and the refusal to mix two runs."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from piat_jax.analysis.runs import CONFIG, EVALUATION, METRICS
from piat_jax.cli.config import Config, differences, from_plain, to_plain
from piat_jax.cli.methods import AVERAGES, parse_method
from piat_jax.core.checks import InputError
from piat_jax.core.files import unwritable, write_json
from piat_jax.training.metrics import read_metrics

CHECKPOINTS = "checkpoints"
DATA = "data.json"
DIVERGED = "diverged.json"
LOCK = "lock"
ROBUSTNESS = "robustness"
OWN_FILES = (
    CONFIG,
    DATA,
    "run.json",
    METRICS,
    "metrics.csv",
    EVALUATION,
    CHECKPOINTS,
    DIVERGED,
    ROBUSTNESS,
    "tensorboard",
    "report",
)
PACKAGES = ("piat_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy")
# Fields that runs of earlier versions lack, with what they did; what a method has not is not added.
LATER = {
    "nonfinite": "stop",
    "fsdp": False,
    "model.bn_groups": 1,
    "dataset.policy": "",
    "dataset.cutout": 0,
    "dataset.extra": "",
    "dataset.extra_fraction": 0.7,
    "dataset.stream": False,
    "model.weights": "",
    "optimizer.max_norm": 0.0,
    "rpat.alpha_from": "fixed",
    "attack.l2_rule": "exact",
    "average.warmup": False,
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
)


def check_folder(
    folder: Path, config: Config, *, resume: bool, overwrite: bool, free: Sequence[str] = FREE_FIELDS
) -> None:
    """Raise InputError unless a run of this config may be written to `folder`; writes nothing.

    A folder without a run must be empty or not exist. One that holds a run needs `resume` (the same config, up to how
    long and how it is evaluated: the fields that begin with one of `free`) or `overwrite`.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"workdir={str(folder)!r} is a file; give a folder")
    if not (folder / CONFIG).exists():
        if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
            raise InputError(f"workdir={str(folder)!r} holds files that are not of a run; give a new or empty folder")
        return
    if overwrite:
        return
    idle = ("attack.l2_rule",) if config.attack.norm.lower() == "linf" else ()  # decides nothing there
    changed = [line for line in differences(_read_plain(folder), to_plain(config)) if not line.startswith(idle)]
    if not resume:
        if changed:
            raise InputError(
                f"workdir={str(folder)!r} holds another run ({'; '.join(changed)}); "
                "give another folder, or --overwrite to replace it"
            )
        done = len(read_metrics(folder))
        raise InputError(
            f"workdir={str(folder)!r} holds this run with {done} of {config.epochs} epochs done; "
            "give --resume to go on, or --overwrite to start again"
        )
    other = [line for line in changed if not line.startswith(tuple(free))]
    if other:
        raise InputError(
            f"workdir={str(folder)!r} holds another run ({'; '.join(other)}) and cannot be resumed with this config; "
            "give the same config, or another folder"
        )


def check_data(folder: Path, data: Mapping[str, Any]) -> None:
    """Raise InputError where the run in `folder` was begun with other data; older runs do not say.

    Args:
      folder: the run's.
      data: what `datasets.describe` makes of the data that it would go on with.
    """
    if not (folder / DATA).exists():
        return
    if changed := differences(read_json(folder / DATA), data):
        raise InputError(
            f"workdir={str(folder)!r} was begun with other data ({'; '.join(changed)}) and cannot be resumed with "
            "these; give those files (dataset.name, dataset.data_dir), or another folder"
        )


def hold_out_how(folder: Path) -> str:
    """How the run in `folder` holds examples out of training; older ones, which do not say, take the last ones."""
    if (folder / DATA).exists():
        return read_json(folder / DATA)["hold_out"]
    return "last" if (folder / CONFIG).exists() else "by class"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder this process's own; it is created where it does not exist.

    The kernel ends the lock with the process, however that ends. File systems without locks go without.

    Raises:
      InputError: another process trains in it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise unwritable(folder, error) from error
    with file:
        with contextlib.suppress(ImportError):  # as on Windows
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise InputError(
                    f"workdir={str(folder)!r} is in use by process {file.read().strip() or 'unknown'}, which trains "
                    "in it; wait for it, or give another folder"
                ) from error
            except OSError as error:
                print(f"{folder} cannot be locked ({error.strerror}); start no second run in it", file=sys.stderr)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def open_folder(folder: Path, config: Config, *, overwrite: bool, data: Mapping[str, Any] | None = None) -> None:
    """Create the folder, or empty it of the run it held, and write what is known before training.

    `data` describes the data that is trained on, where there is some.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in OWN_FILES:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if data:
        write_json(folder / DATA, data)  # first: a config without it is an older version's
    write_json(folder / CONFIG, to_plain(config))
    write_json(folder / "run.json", describe_run())


def read_config(folder: Path) -> Config:
    """The config of the run in `folder`."""
    if not (folder / CONFIG).exists():
        raise InputError(f"workdir={str(folder)!r} holds no run: there is no {CONFIG}; piat-train writes it")
    return from_plain(_read_plain(folder))


def _read_plain(folder: Path) -> dict[str, Any]:
    """The saved config with what was added since."""
    plain = read_json(folder / CONFIG)
    of_average = AVERAGES.get(parse_method(plain["method"]).average, {})
    for path, value in LATER.items():
        group, _, name = path.rpartition(".")
        fields = plain.get(group) if group else plain
        if isinstance(fields, dict) and (group != "average" or name in of_average):
            fields.setdefault(name, value)
    return plain


def describe_run() -> dict[str, Any]:
    """Command, time, versions, device and commit."""
    devices = jax.devices()
    return {
        "command": [Path(sys.argv[0]).name, *(_without_home(argument) for argument in sys.argv[1:])],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "devices": [device.device_kind for device in devices],
        "backend": devices[0].platform,
        "machine": platform.machine(),
        "commit": _commit(),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file, or an InputError that names it."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error})") from error


def _without_home(argument: str) -> str:
    """Run folders are handed on, and the name of one's home is nobody's business."""
    home = str(Path.home())
    return argument.replace(home, "~") if len(home) > 1 else argument


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the code that runs, with "+" where the tree was changed; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        ask = {"cwd": folder, "capture_output": True, "text": True, "check": True, "timeout": 10}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **ask).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **ask).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
