"""Train, evaluate and report several methods (and seeds) side by side; `make train` runs it on the embedded data.

    python -m experiments.compare --config=configs/embedded.py --methods=pgd_at,piat,nmse+piat --seeds=0,1,2

Each run is an ordinary piat-train and piat-evaluate in a process of its own. A second call goes on where the first was
stopped. Methods with kd are taught by the runs of "standard" and "pgd_at" of their seed, which are added where missing
and come first.
"""

import sys
import time
from collections.abc import Sequence

from absl import flags

from experiments.jobs import TEACHERS, Job, check, is_taught, run_jobs, taught_by
from piat_jax.cli import arguments, errors, report
from piat_jax.cli.config import split_overrides
from piat_jax.core.files import expanded
from piat_jax.training.progress import duration


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
    folder = expanded(values.workdir)
    methods = dict.fromkeys([*(TEACHERS.values() if any(map(is_taught, values.methods)) else ()), *values.methods])
    jobs = []
    for seed in values.seeds:
        folders = {method: folder / f"{method}-seed{seed}" for method in methods}
        for method in methods:
            teachers = taught_by(folders) if is_taught(method) else {}
            fields = {**overrides, "seed": seed, **teachers}
            jobs.append(Job(folders[method], f"{values.config}:{method}", fields))
    check(jobs)  # every mistake shows before the first process starts
    run_jobs(jobs, overwrite=values.overwrite)
    print()
    report.main([*(str(job.folder) for job in jobs), f"--out={folder / 'report'}"])
    print(f"\nall done in {duration(time.perf_counter() - began)}")


if __name__ == "__main__":
    sys.exit(errors.run(main))
