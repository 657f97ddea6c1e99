"""A figure or table of a paper: its methods, data, evaluation and claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from experiments.engine.claims import Claim
from piat_jax.experiment.sweep import Job, label, teachers

SCALES = ("small", "paper")
BEST_FINAL = ("best", "final")
ATTACKS = ("clean", "pgd20", "cw20", "aa")


class Block(NamedTuple):
    """A block of a published table, as paper_tables.csv names it."""

    dataset: str
    model: str
    norm: str = "linf"


@dataclass(frozen=True)
class Setting:
    """A data set with a network and a protocol."""

    name: str  # of the runs' folder, and what --data chooses by
    title: str
    config: str  # file in configs/
    beside: Block | None = None  # the published numbers to compare with
    overrides: Mapping[str, str] = field(default_factory=dict)
    differs: str = ""  # how, from the paper
    aa_examples: int = 0  # that AutoAttack gets; 0 = all
    aa_blocks: int = 0  # AutoAttack by margin, in blocks of so many images (studies/screened.py); 0 = on all


@dataclass(frozen=True)
class Row:
    """A method as one paper has it."""

    name: str  # as printed
    method: str = ""  # ours; "" where only the published number is quoted
    overrides: Mapping[str, str] = field(default_factory=dict)
    published: str = ""  # its name in paper_tables.csv where that is another
    note: str = ""
    protocol: Mapping[str, str] = field(default_factory=dict)  # more overrides, at the paper's scale only

    @property
    def label(self) -> str:
        """The method and what is set otherwise: part of the runs' folder names."""
        return label(self.method, self.overrides)


@dataclass(frozen=True)
class Item:
    """A figure or table."""

    key: str  # "table1", "fig9"
    title: str
    rows: tuple[Row, ...]
    settings: Mapping[str, tuple[Setting, ...]]  # by scale
    attacks: tuple[str, ...] = ATTACKS
    checkpoints: tuple[str, ...] = BEST_FINAL
    published: str = ""  # the table's name in paper_tables.csv
    extra: tuple[str, ...] = ()  # columns: "diff", "nrr", "mean", "beyond", "oscillation", "gap", "seconds"
    claims: tuple[Claim, ...] = ()
    study: str = ""  # a module of experiments/studies: what else is found out about the runs, and its picture
    draw: str = ""  # a function of experiments/engine/figures.py, where no study draws
    notes: tuple[str, ...] = ()
    as_table: bool = True

    def at(self, scale: str) -> "Item":
        """The item at a scale: with the rows' overrides at the paper's, without measures of time at the small one."""
        if scale == "paper":
            rows = tuple(replace(row, overrides={**row.protocol, **row.overrides}) for row in self.rows)
            return replace(self, rows=rows)
        # Small runs share a CPU's cores with others, so their seconds say nothing.
        extra = tuple(name for name in self.extra if name != "seconds")
        return replace(self, extra=extra, claims=tuple(claim for claim in self.claims if claim.measure != "seconds"))

    def jobs(self, setting: Setting, seeds: Sequence[int], folder: Path, overrides: Mapping[str, str]) -> list[Job]:
        """The runs, teachers first; equal ones of other items have the same folders."""
        jobs: dict[Path, Job] = {}
        for seed in seeds:
            for row in self.rows:
                fields = {**setting.overrides, **row.overrides, **overrides}
                if row.method:
                    for field, method in teachers(row.method).items():
                        path = run_folder(folder, setting, Row(method, method), seed)
                        jobs[path] = self._job(setting, path, method, {**setting.overrides, **overrides}, seed)
                        fields[field] = str(path)
                    path = run_folder(folder, setting, row, seed)
                    jobs[path] = self._job(setting, path, row.method, fields, seed)
        return list(jobs.values())

    def _job(self, setting: Setting, path: Path, method: str, fields: Mapping[str, str], seed: int) -> Job:
        attacks = tuple(name for name in self.attacks if name != "aa") if setting.aa_blocks else self.attacks
        return Job(path, f"{setting.config}:{method}", {**fields, "seed": str(seed)}, attacks, setting.aa_examples)


def run_folder(folder: Path, setting: Setting, row: Row, seed: int) -> Path:
    """Where a run of a row is.

    >>> from pathlib import PurePosixPath
    >>> setting = Setting("embedded_512", "", "configs/embedded_512.py")
    >>> run_folder(PurePosixPath("runs"), setting, Row("mu = 3", "nmse+piat", {"objective.mu": "3"}), 0).as_posix()
    'runs/embedded_512/nmse+piat,objective.mu=3-seed0'
    """
    return folder / setting.name / f"{row.label}-seed{seed}"
