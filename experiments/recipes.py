"""Small runs of the field's recipes on the embedded data: one-step training, generated images, several norms.

    python -m experiments.recipes --kinds=fast,collapse,generated,norms --workdir=runs/recipes

Each kind is a folder of ordinary runs with a report in it; a second call resumes. The
generated images are draws from a Gaussian for each class, fitted to the training images (`generate`).
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from piat_jax.cli import arguments, errors
from piat_jax.cli.report import report
from piat_jax.core.checks import check_choice
from piat_jax.core.files import expanded, write_arrays
from piat_jax.data import Split, load
from piat_jax.experiment.sweep import Job, check, run_jobs

FAST_EPS = 0.2
NORMS = (0.1, 1.0, 10.0)


class Small(NamedTuple):
    """A run of a kind."""

    name: str  # of its folder
    config: str
    overrides: dict[str, str]
    attacks: tuple[str, ...]
    aa_examples: int = 0


def fast(folder: Path) -> list[Small]:
    """One step at radius 0.2, where FGSM collapses, and PGD-10 for comparison."""
    common = {
        "attack.eps": str(FAST_EPS),
        "evaluation.step_size": str(FAST_EPS / 7.5),
        "evaluation.every_epochs": "4",
        "evaluation.attacks": "clean,pgd10",
        "evaluation.select": "pgd10",
        "dataset.test_examples": "500",
    }
    own = {
        "fgsm": ("pgd_at", {"attack.start": "none", "attack.step_size": str(FAST_EPS)}),
        "fgsm_rs": ("pgd_at", {"attack.step_size": str(1.25 * FAST_EPS)}),
        "n_fgsm": ("pgd_at", {"attack.name": "n_fgsm"}),
        "grad_align": ("grad_align", {"attack.step_size": str(FAST_EPS)}),
        "free": ("free", {"attack.step_size": str(FAST_EPS), "objective.replays": "4"}),
        "pgd10": ("pgd_at", {"attack.steps": "10", "attack.step_size": str(FAST_EPS / 7.5)}),
    }
    return [
        Small(f"{name}{piat}", f"embedded_fast:{method}{piat}", common | fields, ("clean", "pgd10", "pgd50"))
        for piat in ("", "+piat")
        for name, (method, fields) in own.items()
    ]


def collapse(folder: Path) -> list[Small]:
    """One step at radius 0.3, where FGSM-RS collapses: whether PIAT prevents that is a matter of seeds."""
    common = {"evaluation.every_epochs": "4", "evaluation.attacks": "clean,pgd10", "evaluation.select": "pgd10"}
    own = {"fgsm_rs": {}, "n_fgsm": {"attack.name": "n_fgsm"}}
    return [
        Small(f"{name}{piat}", f"embedded_fast:pgd_at{piat}", common | fields, ("clean", "pgd10", "pgd50"))
        for piat in ("", "+piat")
        for name, fields in own.items()
    ]


def generated(folder: Path) -> list[Small]:
    """TRADES as of Wang et al. (2023), without and with 5,000 generated images."""
    path = folder / "generated.npz"
    if not path.exists():
        train = load("embedded", train_examples=512).train
        folder.mkdir(parents=True, exist_ok=True)
        write_arrays(path, dict(zip(("image", "label"), generate(train, 5_000, seed=0))))
    return [
        Small(
            f"{method}{name}", f"embedded_generated:{method}", {"dataset.extra": str(path)} if name else {},
            ("clean", "pgd20", "cw20"),
        )
        for name in ("", ",generated")
        for method in ("trades+ema", "trades+ema+piat")
    ]  # fmt: skip


def norms(folder: Path) -> list[Small]:
    """L-inf 0.1, L2 1 and L1 10 at once; evaluated by AutoAttack's union on 100 images."""
    common = {"evaluation.union_eps": ",".join(map(str, NORMS)), "evaluation.every_epochs": "20"}
    radii = {"attack.eps_l2": str(NORMS[1]), "attack.eps_l1": str(NORMS[2])}
    radii |= {"attack.step_size_l2": "0.25", "attack.step_size_l1": "2.5"}  # of five
    own = {
        "linf": ("pgd_at", {}),
        "max": ("multi_norm", {"multi_norm.how": "max"}),
        "avg": ("multi_norm", {"multi_norm.how": "avg"}),
        "sat": ("multi_norm", {"multi_norm.how": "random"}),
        "eat": ("multi_norm", {"multi_norm.how": "errors", "multi_norm.norms": "linf,l1"}),
        "msd": ("pgd_at", {"attack.name": "msd", **radii}),
    }
    return [
        Small(f"{name}{piat}", f"embedded_512:{method}{piat}", common | fields, ("clean", "aa-union"), 100)
        for piat in ("", "+piat")
        for name, (method, fields) in own.items()
    ]


KINDS = {"fast": fast, "collapse": collapse, "generated": generated, "norms": norms}


def generate(train: Split, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws from a Gaussian for each class in the space of its 20 first principal components, as uint8 and labels.

    >>> train = load("embedded", train_examples=200).train
    >>> images, labels = generate(train, 30, seed=0)
    >>> images.shape, images.dtype.name, sorted(set(labels.tolist())) == list(range(10))
    ((30, 28, 28, 1), 'uint8', True)
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(train.labels)
    labels = np.resize(classes, count)
    images = np.empty((count, *train.images.shape[1:]), np.uint8)
    for label in classes:
        own = train.images[train.labels == label].reshape(-1, images[0].size).astype(np.float64)
        mean = own.mean(axis=0)
        _, sizes, axes = np.linalg.svd(own - mean, full_matrices=False)
        kept = min(20, len(own) - 1)
        drawn = rng.normal(size=(np.sum(labels == label), kept)) * sizes[:kept] / len(own) ** 0.5
        values = np.clip(np.rint(mean + drawn @ axes[:kept]), 0, 255)
        images[labels == label] = values.reshape(-1, *images.shape[1:])
    return images, labels.astype(np.int64)


def main(argv: Sequence[str]) -> None:
    """The command."""
    values = arguments.new_flags()
    flags.DEFINE_list("kinds", list(KINDS), f"Of {', '.join(KINDS)}.", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "Seeds to run each with.", flag_values=values)
    flags.DEFINE_string("workdir", "runs/recipes", "Folder of the runs.", flag_values=values)
    flags.DEFINE_integer("jobs", 0, "Runs at the same time; 0 = as the device allows.", flag_values=values)
    overrides, rest = arguments.split_overrides(argv)
    arguments.parse(values, rest, __doc__)
    for kind in values.kinds:
        check_choice("kinds", kind, KINDS)
    for kind in values.kinds:
        folder = expanded(values.workdir) / kind
        job = functools.partial(_job, folder, overrides)
        jobs = [job(run, seed) for seed in values.seeds for run in KINDS[kind](folder)]
        check(jobs)
        run_jobs(jobs, at_once=values.jobs)
        report([each.folder for each in jobs], folder / "report")


def _job(folder: Path, overrides: dict[str, str], run: Small, seed: str) -> Job:
    fields = {**run.overrides, **overrides, "seed": seed}
    return Job(folder / f"{run.name}-seed{seed}", run.config, fields, run.attacks, run.aa_examples)


if __name__ == "__main__":
    errors.leave(errors.run(main))
