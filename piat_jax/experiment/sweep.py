"""Train and evaluate runs side by side, each by piat-train and piat-evaluate in separate processes.

On a CPU all start at once with one thread each: small convolutions use two cores better as two runs than as two
threads. On an accelerator they take turns. Finished runs are skipped, unfinished ones resumed. What one run has
compiled, the others load: runs that differ in their seed have the same programs.
"""

import itertools
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from piat_jax.core.checks import InputError, SavedAndStopped
from piat_jax.core.cores import count_cores
from piat_jax.core.files import expanded
from piat_jax.core.nested import leaves
from piat_jax.experiment import config
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.methods import parse_method
from piat_jax.experiment.run import Run
from piat_jax.experiment.run_evaluation import is_autoattack, is_evaluated
from piat_jax.objectives import WRAPPERS
from piat_jax.programs.platform import platform

# An existing run counts as the requested one even if these differ: the data's place, and what was logged or kept.
FREE_FIELDS = ("fsdp", "checkpoint.", "log.", "dataset.data_dir", "dataset.stream", "evaluation.final_attacks")
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
TRAIN = "piat_jax.cli.train"
print_lock = threading.Lock()


class Job(NamedTuple):
    """A run to train and evaluate."""

    folder: Path
    config: str  # NAME:METHOD or FILE:METHOD
    overrides: Mapping[str, str]  # of the config's fields, including the seed
    attacks: tuple[str, ...] = ()  # of the evaluation; () = the config's
    aa_examples: int = 0  # number of examples for AutoAttack; 0 = all

    @property
    def method(self) -> str:
        """The method, after the config's colon."""
        return self.config.partition(":")[2]

    @property
    def run(self) -> Run:
        """The run in the job's folder."""
        return Run(self.folder)

    def experiment(self) -> Experiment:
        """The experiment to train and evaluate."""
        attacks = {"evaluation.final_attacks": self.attacks} if self.attacks else {}
        return config.load(self.config, {**self.overrides, **attacks})


class Processes:
    """The running commands. In this context, SIGTERM, SIGHUP and Ctrl-C are passed on to them, and no other starts."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.RLock()  # a second signal may interrupt the first one's handler
        self._before: dict[int, Any] = {}

    def start(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str] | None:
        """Start a command; None after a signal. Its group is its own, so that Ctrl-C reaches it once, through us."""
        own_group = {"process_group": 0} if os.name == "posix" else {}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **own_group}
        with self._lock:
            if self.stopped:
                return None
            process = subprocess.Popen(command, env=environment, **options)  # type: ignore[call-overload]
            self._running.add(process)
            return process

    def ended(self, process: subprocess.Popen[str]) -> None:
        """Forget a command that has ended."""
        with self._lock:
            self._running.discard(process)

    def __enter__(self) -> "Processes":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def plan(
    text: str,
    folder: Path,
    *,
    methods: Sequence[str],
    seeds: Sequence[str],
    swept: Mapping[str, Sequence[str]],
    overrides: Mapping[str, str],
    attacks: tuple[str, ...] = (),
    aa_examples: int = 0,
) -> list[Job]:
    """The runs of every method, seed and combination of swept values, teachers first.

    Args:
      text: a config, without a method.
      folder: for the runs' folders, `METHOD,FIELD=VALUE-seedN`.
      methods: method strings.
      seeds: for each method.
      swept: field to values.
      overrides: fields of all runs.
      attacks: of the evaluation; () = the config's.
      aa_examples: number of examples for AutoAttack; 0 = all.
    """
    jobs: dict[Path, Job] = {}
    for values in itertools.product(*swept.values()):
        fields = dict(zip(swept, values))

        def job(method: str, seed: str, more: Mapping[str, str], fields: Mapping[str, str] = fields) -> Job:
            where = folder / f"{label(method, fields)}-seed{seed}"
            taught = {**overrides, **fields, "seed": seed, **more}
            return Job(where, f"{text}:{method}", taught, attacks, aa_examples)

        for seed in seeds:
            for method in methods:
                taught_by = {field: job(teacher, seed, {}) for field, teacher in teachers(method).items()}
                jobs |= {teacher.folder: teacher for teacher in taught_by.values()}
                made = job(method, seed, {field: str(teacher.folder) for field, teacher in taught_by.items()})
                jobs[made.folder] = made
    return list(jobs.values())


def label(method: str, fields: Mapping[str, str]) -> str:
    """A method and its changed fields: the name of a run's folder, without the seed.

    >>> label("nmse+piat", {"objective.mu": "3", "attack.eps": "4/255"})
    'nmse+piat,objective.mu=3,attack.eps=4over255'
    """
    return ",".join([method, *(f"{path}={value.replace('/', 'over')}" for path, value in fields.items())])


def teachers(method: str) -> dict[str, str]:
    """The fields of a method that name teachers' runs, each with the teacher's method.

    >>> teachers("kd+swa"), teachers("awp")
    ({'kd.standard': 'standard', 'kd.robust': 'pgd_at'}, {})
    """
    wrappers = parse_method(method).wrappers
    return {f"{name}.{field}": taught for name in wrappers for field, taught in WRAPPERS[name].teachers.items()}


def split_values(text: str, like: object) -> list[str]:
    """Split the values of a swept field: at `;`, or at commas if the field is not a list.

    Raises:
      InputError: the field is a list, and there is no `;`.

    >>> split_values("4/255,8/255", 0.1), split_values("0,1;0,2", (0.0,))
    (['4/255', '8/255'], ['0,1', '0,2'])
    """
    if isinstance(like, tuple) and ";" not in text:
        raise InputError(f"{text!r} is for a field that holds a list; separate lists by ;, such as '0.1,0.01;0.2,0.02'")
    parts = text.split(";" if ";" in text else ",")
    return [part.strip() for part in parts if part.strip()]


def swept_values(text: str, methods: Sequence[str], given: Mapping[str, str]) -> dict[str, list[str]]:
    """Swept fields and their values, from the text in `given`.

    Raises:
      InputError: some method lacks a field, or a field has no values.
    """
    found: dict[str, list[str]] = {}
    experiments = [config.load(f"{text}:{method}", checked=False) for method in methods] if given else []
    for path, values in given.items():
        for experiment in experiments:
            fields = leaves(experiment.plain())
            if path not in fields:
                config.resolve(experiment, {path: values}, checked=False)  # says what is wrong with the name
            found[path] = split_values(values, fields.get(path))
        if not found[path]:
            raise InputError(f"sweep.{path} is empty; give values, such as --sweep.{path}=1,2")
    return found


def check(jobs: Sequence[Job]) -> None:
    """Raise InputError for the first job with an invalid config; piat-train checks jobs that wait for teachers."""
    for job in jobs:
        if not teachers(job.method):
            experiment = job.experiment()
            there = experiment.dataset.test_examples
            if any(map(is_autoattack, experiment.evaluation.final_attacks)) and 0 < there < job.aa_examples:
                raise InputError(
                    f"dataset.test_examples={there} is less than aa_examples={job.aa_examples} in {job.folder.name}; "
                    "give at least as many"
                )


def is_trained(job: Job) -> bool:
    """Whether the folder holds this run up to its last epoch.

    Raises:
      InputError: the folder holds another run.
    """
    run = job.run
    if not run.is_begun or not _teachers_are_there(job):
        return False
    experiment = job.experiment()
    run.check_free(experiment, resume=True, overwrite=False, free=FREE_FIELDS)
    if "last" not in run.checkpoints:
        return False
    info = run.checkpoints.info("last")
    # A run that was stopped within an epoch, or in the evaluation after it, has a position.
    return info["epoch"] == experiment.epochs and not info.get("position")


def run_jobs(jobs: Sequence[Job], *, overwrite: bool = False, at_once: int = 0) -> None:
    """Train and evaluate unfinished jobs; each line of output begins with the run's name.

    Args:
      jobs: teachers first.
      overwrite: replace existing runs.
      at_once: number of parallel runs; 0 = depending on the machine.

    Raises:
      InputError: a command failed; the message has its last line. Results of other commands are kept.
      SavedAndStopped: SIGTERM or Ctrl-C; the running commands received it too and have ended.
    """
    on_cpu = platform() == "cpu"
    cores = count_cores()
    at_once = at_once or (max(1, min(len(jobs), 2 * cores)) if on_cpu else 1)
    environment = dict(os.environ)
    if on_cpu:
        environment["NPROC"] = str(max(1, cores // at_once))  # the threads XLA uses on a CPU
    # What JAX cannot store, or finds half written, is compiled again: on a CPU with jax 0.12 all that uses oneDNN.
    ignored = [f"ignore:Error {what} persistent compilation cache entry" for what in ("reading", "writing")]
    environment["PYTHONWARNINGS"] = ",".join(filter(None, (environment.get("PYTHONWARNINGS"), *ignored)))
    width = max((len(job.folder.name) for job in jobs), default=0)

    def run(due: tuple[Job, list[list[str]]]) -> None:
        job, commands = due
        for command in commands:
            if command[0] == TRAIN and not job.run.is_begun:
                command = [word for word in command if word != "--resume"]
            _run([sys.executable, "-m", *command], f"{job.folder.name:{width}}", environment, processes)

    processes = Processes()
    with processes, tempfile.TemporaryDirectory(prefix="piat-compiled-") as compiled:
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
        for pupils in (False, True):
            due = [(job, _commands(job, overwrite=overwrite)) for job in jobs if bool(teachers(job.method)) == pupils]
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(run, due))
            if processes.stopped:
                raise SavedAndStopped("stopped; the same command continues the runs that were not finished")


def command_lines(jobs: Sequence[Job]) -> list[str]:
    """A shell line for each unfinished run; running a line again does nothing."""
    lines = []
    for job in jobs:
        names = {TRAIN: "piat-train", "piat_jax.cli.evaluate": "piat-evaluate"}
        commands = [shlex.join([names[module], *rest]) for module, *rest in _commands(job, overwrite=False)]
        if commands:
            lines.append(" && ".join(commands))
    return lines


def _commands(job: Job, *, overwrite: bool) -> list[list[str]]:
    """The commands that still have to run."""
    fields = [f"--config.{path}={value}" for path, value in job.overrides.items()]
    train = [TRAIN, f"--config={job.config}", f"--workdir={job.folder}", *fields]
    evaluate = ["piat_jax.cli.evaluate", f"--workdir={job.folder}", f"--aa_examples={job.aa_examples}"]
    if job.attacks:
        evaluate.append(f"--attacks={','.join(job.attacks)}")
    if config.is_file(job.config) and config.load(job.config, job.overrides, checked=False).needs_its_file:
        evaluate.append(f"--config={job.config}")
    if overwrite:
        return [[*train, "--overwrite"], [*evaluate, "--overwrite"]]
    if not is_trained(job):
        return [[*train, "--resume"], [*evaluate, "--resume"]]
    return [] if is_evaluated(job.experiment(), job.run, aa_examples=job.aa_examples) else [[*evaluate, "--resume"]]


def _teachers_are_there(job: Job) -> bool:
    return all(Run(expanded(job.overrides[field])).exists for field in teachers(job.method))


def _run(command: list[str], name: str, environment: dict[str, str], processes: Processes) -> None:
    """Run a command, and print its lines with the run's name in front; after a signal, do nothing."""
    process = processes.start(command, environment)
    if process is None:
        return
    with process:
        lines = []
        for line in process.stdout or ():
            lines.append(line.rstrip())
            with print_lock:
                print(f"{name}  {line}", end="", flush=True)
    processes.ended(process)
    if process.returncode and not processes.stopped:
        raise InputError(f"{name.strip()} failed with exit code {process.returncode}: {lines[-1] if lines else ''}")
