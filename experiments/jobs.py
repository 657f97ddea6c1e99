"""Runs trained and evaluated side by side, each by piat-train and piat-evaluate in a process of its own.

On a CPU all start at once with one thread each: small convolutions use two cores better as two runs than as two
threads. On an accelerator they take turns. What is done is left alone, what is half done goes on.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax

from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import run_folder
from piat_jax.cli.config import Config
from piat_jax.cli.cores import count_cores
from piat_jax.cli.evaluate import is_autoattack, is_evaluated
from piat_jax.cli.methods import parse_method
from piat_jax.cli.train import read_config
from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded

# Of a run that is taken for one that was asked for these may differ: where data lie, and what was looked at or kept.
FREE_FIELDS = ("fsdp", "checkpoint.", "log.", "dataset.data_dir", "dataset.stream", "evaluation.final_attacks")
TEACHERS = {"standard": "standard", "robust": "pgd_at"}
print_lock = threading.Lock()


class Job(NamedTuple):
    """A run to train and evaluate."""

    folder: Path
    config: str  # FILE:METHOD
    overrides: Mapping[str, str]  # of fields of the config, its seed among them
    attacks: tuple[str, ...] = ()  # of the evaluation; () = the config's
    aa_examples: int = 0  # that AutoAttack gets; 0 = all

    @property
    def method(self) -> str:
        """What stands after the colon."""
        return self.config.partition(":")[2]


def is_taught(method: str) -> bool:
    """Whether the method needs its teachers' runs first."""
    return "kd" in parse_method(method).wrappers


def taught_by(folders: Mapping[str, Path]) -> dict[str, str]:
    """The overrides that name the teachers: the folders of the runs of "standard" and "pgd_at"."""
    return {f"kd.{kind}": str(folders[method]) for kind, method in TEACHERS.items()}


def check(jobs: Sequence[Job]) -> None:
    """Raise InputError for the first job whose config is wrong; piat-train checks those that wait for teachers."""
    for job in jobs:
        if not is_taught(job.method):
            config = _config(job)
            there = config.dataset.test_examples
            if any(map(is_autoattack, config.evaluation.final_attacks)) and 0 < there < job.aa_examples:
                raise InputError(
                    f"dataset.test_examples={there} are fewer than the {job.aa_examples} that AutoAttack is to have in "
                    f"{job.folder.name}; give at least these"
                )


def is_trained(job: Job) -> bool:
    """Whether the folder holds this run up to its last epoch.

    Raises:
      InputError: it holds another one.
    """
    if not (job.folder / run_folder.CONFIG).exists() or (is_taught(job.method) and not _teachers_are_there(job)):
        return False
    config = _config(job)
    run_folder.check_folder(job.folder, config, resume=True, overwrite=False, free=FREE_FIELDS)
    checkpoints = Checkpoints(job.folder / run_folder.CHECKPOINTS)
    if "last" not in checkpoints:
        return False
    info = checkpoints.info("last")
    # Stopped within an epoch, or in the evaluation behind it, a run has a position there.
    return info["epoch"] == config.epochs and not info.get("position")


def _config(job: Job) -> Config:
    config = read_config(job.config, dict(job.overrides))
    if job.attacks:
        config.evaluation.final_attacks = job.attacks
    return config


def run_jobs(jobs: Sequence[Job], *, overwrite: bool = False) -> None:
    """Train and evaluate what is not done; lines of output begin with the run's name.

    Raises:
      InputError: a command failed; the message has its last line. What others have done stays.
    """
    on_cpu = jax.default_backend() == "cpu"
    cores = count_cores()
    at_once = max(1, min(len(jobs), 2 * cores)) if on_cpu else 1
    environment = dict(os.environ)
    if on_cpu:
        environment["NPROC"] = str(max(1, cores // at_once))  # the threads XLA uses on a CPU
    width = max((len(job.folder.name) for job in jobs), default=0)

    def run(due: tuple[Job, list[list[str]]]) -> None:
        job, commands = due
        for command in commands:
            _run([sys.executable, "-m", *command], f"{job.folder.name:{width}}", environment)

    for pupils in (False, True):
        due = [(job, _commands(job, overwrite=overwrite)) for job in jobs if is_taught(job.method) == pupils]
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(run, due))


def _commands(job: Job, *, overwrite: bool) -> list[list[str]]:
    """What is still to be called."""
    fields = [f"--config.{path}={value}" for path, value in job.overrides.items()]
    train = ["piat_jax.cli.train", f"--config={job.config}", f"--workdir={job.folder}", *fields]
    evaluate = ["piat_jax.cli.evaluate", f"--workdir={job.folder}", f"--aa_examples={job.aa_examples}"]
    if job.attacks:
        evaluate.append(f"--attacks={','.join(job.attacks)}")
    if overwrite:
        return [[*train, "--overwrite"], [*evaluate, "--overwrite"]]
    if not is_trained(job):
        return [[*train, "--resume"], [*evaluate, "--resume"]]
    return [] if is_evaluated(_config(job), job.folder, aa_examples=job.aa_examples) else [[*evaluate, "--resume"]]


def _teachers_are_there(job: Job) -> bool:
    return all((expanded(job.overrides[f"kd.{kind}"]) / run_folder.CONFIG).exists() for kind in TEACHERS)


def _run(command: list[str], name: str, environment: dict[str, str]) -> None:
    """Run a command, its lines passed on with the run's name in front."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line.rstrip())
            with print_lock:
                print(f"{name}  {line}", end="", flush=True)
    if process.returncode:
        raise InputError(f"{name.strip()} failed with exit code {process.returncode}: {lines[-1] if lines else ''}")
