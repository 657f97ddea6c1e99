"""Read and check the results in run folders."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.averaging import AVERAGES, INTERPOLATIONS
from piat_jax.core.checks import InputError
from piat_jax.core.files import command, expanded
from piat_jax.core.nested import in_255ths, leaves
from piat_jax.core.registry import default_title
from piat_jax.objectives import METHODS, WRAPPERS

FILES = CONFIG, METRICS, EVALUATION = "config.json", "metrics.jsonl", "evaluation.json"
DESCRIPTION = "run.json"
CHECKPOINTS = ("best", "final")


@dataclass(frozen=True)
class ByClass:
    """The accuracy of each class under an attack, in [0, 1]."""

    names: tuple[str, ...]
    accuracy: tuple[float | None, ...]  # None for a class without examples
    worst_class: str
    worst: float


@dataclass(frozen=True)
class NormCurve:
    """The result of a minimum-norm attack: the median norm, and the accuracy at some radii."""

    norm: str
    median: float | None  # None if nothing was found for half of the examples
    found: float  # success rate on correctly classified clean examples, in [0, 1]
    eps: tuple[float, ...]  # ascending from 0
    accuracy: tuple[float, ...]  # fractions


@dataclass(frozen=True)
class CorruptionScores:
    """Accuracy under common corruptions, in [0, 1]."""

    clean: float
    mean: float  # over the fifteen corruptions and five severities
    mce: float  # relative to AlexNet's errors if `normalised`, else the mean error
    normalised: bool
    extra: float | None  # the mean over other corruptions
    by_corruption: Mapping[str, float]  # the mean over severities
    num_examples: int


@dataclass(frozen=True)
class Checkpoint:
    """Accuracies of one checkpoint."""

    epoch: int
    accuracy: Mapping[str, float]  # by attack ("clean", "pgd20", ...), fractions
    by_class: Mapping[str, ByClass] = field(default_factory=dict)  # by attack; {} for earlier versions
    minimum_norm: Mapping[str, NormCurve] = field(default_factory=dict)  # by attack
    corruptions: CorruptionScores | None = None
    transfer: Mapping[tuple[str, str], float] = field(default_factory=dict)  # by (source, attack), fractions


@dataclass(frozen=True)
class RunResults:
    """The results of one training run."""

    folder: Path
    method: str
    dataset: str
    model: str
    epochs: int  # planned
    seed: int
    metrics: tuple[Mapping[str, float], ...]  # one entry per epoch, in order
    num_examples: int  # number of examples on which the checkpoints were evaluated
    aa_examples: int  # the first n of them, for AutoAttack and its members
    held_out: int  # number of training images that chose the best epoch; 0 = the test images did, as in the papers
    checkpoints: Mapping[str, Checkpoint]  # the evaluated ones of "best" and "final"
    select: str = "pgd20"  # the attack that chose the best epoch, and whose curves are drawn
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the config, "group.name" to value
    averages: Mapping[str, Checkpoint] = field(default_factory=dict)  # the final checkpoint of each further average
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the evaluation, from evaluation.json
    class_names: tuple[str, ...] = ()  # () for earlier versions
    description: Mapping[str, Any] = field(default_factory=dict)  # run.json: versions, devices, commit

    @property
    def selected(self) -> str:
        """The metric that chose the best epoch, also if it was measured on held-out examples."""
        return f"test_{self.select}"

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """The epochs that have the metric `key`, and its values; held-out examples replace the test set if used."""
        if not any(key in entry for entry in self.metrics):
            key = key.replace("test_", "validation_", 1)
        pairs = [(entry["epoch"], entry[key]) for entry in self.metrics if key in entry]
        return np.array([epoch for epoch, _ in pairs], int), np.array([value for _, value in pairs], float)


def load_run(folder: str | os.PathLike[str]) -> RunResults:
    """Read config.json, metrics.jsonl and evaluation.json of a run folder.

    Raises:
      InputError: a file is missing or invalid; the message names it, and the command that writes it.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder} does not exist; give the folder of a run, as {command('piat-train', workdir=folder)} makes"
        )
    config = read_json(folder / CONFIG, command("piat-train", workdir=folder))
    metrics = _read_metrics(folder / METRICS, command("piat-train", workdir=folder))
    evaluation = read_json(folder / EVALUATION, command("piat-evaluate", workdir=folder))
    path = folder / EVALUATION
    found = _field(path, evaluation, "checkpoints", dict)

    def checkpoint(name: str) -> Checkpoint:
        return Checkpoint(
            _field(path, evaluation, f"checkpoints.{name}.epoch", int),
            _accuracies(str(path), _field(path, evaluation, f"checkpoints.{name}.accuracy", dict)),
            _by_class(path, found[name].get("by_class", {}), evaluation.get("class_names", [])),
            _norm_curves(path, found[name].get("minimum_norm", {})),
            _corruptions(folder / "corruptions" / f"{name.replace(':', '_')}.json", found[name]["epoch"]),
            _transfers(path, found[name].get("transfer", {})),
        )

    checkpoints = {name: checkpoint(name) for name in CHECKPOINTS if name in found}
    averages = {name.partition(":")[2]: checkpoint(name) for name in found if name.startswith("final:")}
    if not checkpoints:
        raise InputError(
            f"{path} has no checkpoint best or final; run {command('piat-evaluate', workdir=folder)} again"
        )
    num_examples = _field(path, evaluation, "num_examples", int)
    config_path = folder / CONFIG
    return RunResults(
        folder,
        method=_field(config_path, config, "method", str),
        dataset=_field(config_path, config, "dataset.name", str),
        model=_field(config_path, config, "model.name", str),
        epochs=_field(config_path, config, "epochs", int),
        seed=_field(config_path, config, "seed", int),
        metrics=metrics,
        num_examples=num_examples,
        aa_examples=evaluation.get("aa_examples", num_examples),
        held_out=config["dataset"].get("validation_examples", 0),
        checkpoints=checkpoints,
        select=config.get("evaluation", {}).get("select", "pgd20"),
        fields=leaves(config),
        averages=averages,
        settings=evaluation.get("settings", {}),
        class_names=tuple(map(str, evaluation.get("class_names", ()))),
        description=read_json(folder / DESCRIPTION, "piat-train") if (folder / DESCRIPTION).exists() else {},
    )


def display_name(method: str) -> str:
    """The name of a method in the papers.

    >>> [display_name(method) for method in ("pgd_at", "pgd_at+piat", "nmse+piat", "trades+awp", "pgd_at+las+piat")]
    ['PGD-AT', 'PIAT', 'PIAT+NMSE', 'TRADES+AWP', 'PIAT+LAS-AT']
    """
    parts = [part for part in method.split("+") if part != "piat"]
    piat = [INTERPOLATIONS.about("piat").title] if len(parts) < len(method.split("+")) else []
    if piat or len(parts) > 1:
        # PGD-AT is implied.
        parts = [part for part in parts if part != "pgd_at"]
    return "+".join([*piat, *map(_title, parts)])


def _title(part: str) -> str:
    """A part's title; a part from an unread config file, which has no title, by its name."""
    registries = (METHODS, WRAPPERS, AVERAGES)
    return next((known.about(part).title for known in registries if part in known), default_title(part))


# Fields that do not make a different experiment: the data's place, logging, saving; seeds are grouped.
IDLE = ("seed", "fsdp", "nonfinite", "checkpoint.", "log.", "dataset.data_dir", "dataset.stream", "kd.")
WATCHED = ("every_epochs", "attacks", "select", "final_attacks", "batch_size")
IDLE += tuple(f"evaluation.{name}" for name in WATCHED)


@dataclass(frozen=True)
class Group:
    """The runs of one experiment, which differ only in their seeds."""

    dataset: str
    model: str
    method: str
    runs: tuple[RunResults, ...]
    variant: str = ""  # fields that differ from other runs of the same method: "attack.eps=8/255"

    @property
    def name(self) -> str:
        """The method's name in the papers, and the fields that differ."""
        return ", ".join(filter(None, [display_name(self.method), self.variant]))


def group_runs(runs: Sequence[RunResults]) -> list[Group]:
    """Group runs by data set, model, method and all other differing fields, in the order of first appearance.

    Raises:
      InputError: there are no runs, or two runs of one experiment and seed.
    """
    if not runs:
        raise InputError("no runs; give at least one")
    kinds: dict[tuple[str, str, str], list[RunResults]] = {}
    for run in runs:
        kinds.setdefault((run.dataset, run.model, run.method), []).append(run)
    blocks = list(dict.fromkeys(key[:2] for key in kinds))
    groups = []
    for key, members in sorted(kinds.items(), key=lambda item: blocks.index(item[0][:2])):
        by_variant: dict[str, list[RunResults]] = {}
        for run, variant in zip(members, variants(members)):
            seeds = by_variant.setdefault(variant, [])
            for other in seeds:
                if run.seed == other.seed:
                    what = f"{display_name(run.method)} on {run.dataset} with seed {run.seed}"
                    raise InputError(f"{other.folder} and {run.folder} are both {what}; give one of them")
            seeds.append(run)
        groups += [Group(*key, tuple(found), variant) for variant, found in by_variant.items()]
    return groups


def variants(runs: Sequence[RunResults]) -> list[str]:
    """The fields that distinguish each of some runs of a method, as "attack.eps=8/255, epochs=60".

    Redundant fields, such as an evaluation's radius that follows the attack's, are left out, and so are fields that
    runs of other versions lack.
    """
    names = [name for name in dict.fromkeys(name for run in runs for name in run.fields) if not name.startswith(IDLE)]
    telling: dict[tuple[Any, ...], str] = {}
    for name in names:
        values = [run.fields.get(name) for run in runs]
        different = list(dict.fromkeys(map(str, values)))
        if len(different) > 1 and None not in values:
            telling.setdefault(tuple(different.index(str(value)) for value in values), name)
    return [", ".join(f"{name}={_short(name, run.fields[name])}" for name in telling.values()) for run in runs]


def _short(name: str, value: Any) -> str:
    """A field's value in a label.

    >>> _short("attack.eps", 8 / 255), _short("optimizer.momentum", 0.2), _short("optimizer.lr_values", [1, 0.5])
    ('8/255', '0.2', '1,0.5')
    >>> _short("dataset.extra", "~/data/ddpm.npz"), _short("dataset.extra", "")
    ('ddpm.npz', 'none')
    """
    if isinstance(value, list | tuple):
        return ",".join(_short(name, each) for each in value)
    if isinstance(value, str):
        return value.rpartition("/")[2] or "none"  # of a path, the last part
    return in_255ths(name, value) or (f"{value:.4g}" if isinstance(value, float) else str(value))


def read_json(path: Path, command: str = "piat-evaluate") -> dict[str, Any]:
    """Read the object in a JSON file, or raise an InputError that names it and the command that writes it."""
    return _object(read_text(path, command), str(path))


def _read_metrics(path: Path, command: str) -> tuple[Mapping[str, float], ...]:
    """Epochs in order; if an epoch was run twice (resumed), the later line counts."""
    by_epoch = {}
    for number, line in enumerate(read_text(path, command).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        entry = _object(line, where)
        epoch = entry.get("epoch")
        if not isinstance(epoch, int) or isinstance(epoch, bool):
            raise InputError(f"{where} has epoch={epoch!r}; each line needs an integer")
        _accuracies(where, {key: value for key, value in entry.items() if key.startswith("test_")})
        by_epoch[epoch] = entry
    if not by_epoch:
        raise InputError(f"{path} is empty; {command} has finished no epoch")
    return tuple(by_epoch[epoch] for epoch in sorted(by_epoch))


def read_text(path: Path, command: str) -> str:
    """Read a text file, or raise an InputError that names it and the command that writes it."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {command} writes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error}); repair or remove it") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} holds a JSON {type(value).__name__}; it must be an object, {{...}}")
    return value


def _field(path: Path, content: Any, name: str, kind: type) -> Any:
    """The value under a dotted name."""
    for part in name.split("."):
        if not isinstance(content, dict) or part not in content:
            raise InputError(f"{path} has no {name}; it was not written by this version of piat_jax")
        content = content[part]
    if not isinstance(content, kind) or isinstance(content, bool):
        raise InputError(f"{path} has {name}={content!r}; it must be of type {kind.__name__}")
    return content


def _by_class(path: Path, found: Any, names: Sequence[str]) -> dict[str, ByClass]:
    """The class accuracies in evaluation.json, by attack."""
    read = {}
    for attack in found:
        kept = {name: _field(path, found, f"{attack}.{name}", kind) for name, kind in _OF_CLASSES.items()}
        values = kept["classes"]
        known = {f"{attack}, class {number}": value for number, value in enumerate(values) if value is not None}
        _accuracies(str(path), {**known, f"{attack}.worst": kept["worst"]})
        if len(values) != len(names):
            raise InputError(f"{path} has {len(values)} accuracies under {attack} but {len(names)} class_names")
        read[attack] = ByClass(tuple(names), tuple(values), kept["worst_class"], kept["worst"])
    return read


def _transfers(path: Path, found: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    return {
        (source, attack): value
        for source in found
        for attack, value in _accuracies(str(path), _field(path, found[source], "accuracy", dict)).items()
    }


def _norm_curves(path: Path, found: Any) -> dict[str, NormCurve]:
    """The minimum norms in evaluation.json, by attack."""
    read = {}
    for attack in found:
        norm, share = (
            _field(path, found, f"{attack}.{name}", kind) for name, kind in (("norm", str), ("found", float))
        )
        eps, accuracy = (_field(path, found, f"{attack}.curve.{name}", list) for name in ("eps", "accuracy"))
        shares = {f"{attack}.curve.accuracy[{number}]": value for number, value in enumerate(accuracy)}
        _accuracies(str(path), {**shares, f"{attack}.found": share})
        if len(eps) != len(accuracy) or not eps or sorted(eps) != eps:
            raise InputError(
                f"{path} has {len(eps)} radii of {attack} for {len(accuracy)} accuracies, or they do not ascend"
            )
        read[attack] = NormCurve(norm, found[attack].get("median"), share, tuple(eps), tuple(accuracy))
    return read


def _corruptions(path: Path, epoch: int) -> CorruptionScores | None:
    """The results in a file of the folder `corruptions`; None if missing, incomplete or for other weights."""
    if not path.exists():
        return None
    found = read_json(path, "piat-evaluate --corruptions")
    if _field(path, found, "epoch", int) != epoch or "mean" not in found:
        return None
    values = {name: _field(path, found, name, float) for name in ("clean", "mean", "mce")}
    accuracies = _field(path, found, "accuracy", dict)
    every = {f"{name}, severity {i}": value for name, each in accuracies.items() for i, value in enumerate(each, 1)}
    _accuracies(str(path), {**every, "clean": values["clean"], "mean": values["mean"]})
    return CorruptionScores(
        **values,
        normalised=_field(path, found, "mce_is", str).startswith("relative"),
        extra=found.get("extra"),
        by_corruption={name: float(np.mean(each)) for name, each in accuracies.items()},
        num_examples=_field(path, found, "num_examples", int),
    )


_OF_CLASSES: dict[str, type] = {"worst_class": str, "worst": float, "classes": list}


def _accuracies(where: str, values: dict[str, Any]) -> dict[str, float]:
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and 0 <= value <= 1):
            raise InputError(f"{where} has {name}={value!r}; accuracies are fractions in [0, 1]")
    return values
