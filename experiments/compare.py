"""Train, evaluate and report several methods (and seeds) side by side; `make train` runs it on the embedded data.

    python -m experiments.compare --config=configs/embedded.py --methods=pgd_at,piat,nmse+piat --seeds=0,1,2

Each run is an ordinary piat-train and piat-evaluate in a process of its own. On a CPU all start at once with one
thread each: small convolutions use two cores better as two runs than as two threads. On an accelerator they take turns.
A second call goes on where the first was stopped. Methods with kd are taught by the runs of "standard" and "pgd_at" of
their seed, which are added where missing and come first.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from absl import flags

from piat_jax.cli import arguments, errors, report
from piat_jax.cli.config import split_overrides
from piat_jax.cli.cores import count_cores
from piat_jax.cli.methods import parse_method
from piat_jax.cli.train import read_config
from piat_jax.core.checks import InputError
from piat_jax.training.progress import duration

TEACHERS = {"standard": "standard", "robust": "pgd_at"}
print_lock = threading.Lock()


def main(argv: Sequence[str]) -> None:
    """The command."""
    overrides, rest = split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("config", "configs/embedded.py", "Config file, without a method.", flag_values=values)
    flags.DEFINE_string("workdir", "runs/embedded", "Folder of the runs.", flag_values=values)
    flags.DEFINE_list("methods", ["pgd_at", "piat", "nmse+piat"], "Methods to compare.", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "Seeds to run each with.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Start again where runs exist.", flag_values=values)
    arguments.parse(values, rest, __doc__)
    began = time.perf_counter()
    folder = Path(values.workdir)
    methods = dict.fromkeys([*(TEACHERS.values() if any(map(is_taught, values.methods)) else ()), *values.methods])
    names = {f"{method}-seed{seed}": (method, seed) for seed in values.seeds for method in methods}
    for method, seed in names.values():  # every mistake shows before the first process starts
        if not is_taught(method):
            read_config(f"{values.config}:{method}", {**overrides, "seed": seed})

    passed_on = [f"--config.{path}={value}" for path, value in overrides.items()]
    mode = "--overwrite" if values.overwrite else "--resume"
    on_cpu = jax.default_backend() == "cpu"
    cores = count_cores()
    jobs = min(len(names), 2 * cores) if on_cpu else 1
    environment = dict(os.environ)
    if on_cpu:
        environment["NPROC"] = str(max(1, cores // jobs))  # the threads XLA uses on a CPU
    width = max(map(len, names))

    def run(name: str) -> None:
        method, seed = names[name]
        target = str(folder / name)
        train = ["train", f"--config={values.config}:{method}", f"--workdir={target}", f"--config.seed={seed}", mode]
        if is_taught(method):
            train += [f"--config.kd.{kind}={folder / f'{teacher}-seed{seed}'}" for kind, teacher in TEACHERS.items()]
        for command in ([*train, *passed_on], ["evaluate", f"--workdir={target}"]):
            _run([sys.executable, "-m", f"piat_jax.cli.{command[0]}", *command[1:]], f"{name:{width}}", environment)

    for pupils in (False, True):
        due = [name for name, (method, _) in names.items() if is_taught(method) == pupils]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, due))
    print()
    report.main([*(str(folder / name) for name in names), f"--out={folder / 'report'}"])
    print(f"\nall done in {duration(time.perf_counter() - began)}")


def is_taught(method: str) -> bool:
    """Whether the method needs its teachers' runs first."""
    return "kd" in parse_method(method).wrappers


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


if __name__ == "__main__":
    sys.exit(errors.run(main))
