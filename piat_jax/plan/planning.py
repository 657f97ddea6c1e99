"""The plan of a run on a target: which programs are compiled, how often each runs, and the total time."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from piat_jax.core.checks import InputError
from piat_jax.evaluation import AutoAttack
from piat_jax.experiment.evaluation import evaluation_attack, is_minimum_norm
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.run import checkpoints_of
from piat_jax.experiment.run_evaluation import is_autoattack
from piat_jax.plan import programs
from piat_jax.plan.compiled import estimate
from piat_jax.plan.estimate import Estimate, Stage, block_seconds, epoch_seconds, evaluated_epochs, next_batch
from piat_jax.plan.programs import Program, Sizes
from piat_jax.plan.targets import Target

WHAT = ("train", "evaluate", "autoattack")
LARGEST_COMPILES = 6
"""Maximum number of batch sizes that are compiled to find the largest."""


class AtBatch(NamedTuple):
    """Training at another batch size."""

    batch: int
    train: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The requirements of a run.

    Attributes:
      experiment: the run.
      target, devices: type and number of its devices.
      sizes: of its data.
      parameters: number of its network's parameters.
      estimates: of the programs, in the order in which they first run.
      stages: the parts of the run.
      batches: training at other batch sizes, ascending.
      notes: settings that may be unintended.
    """

    experiment: Experiment
    target: Target
    devices: int
    sizes: Sizes
    parameters: int
    estimates: tuple[Estimate, ...]
    stages: tuple[Stage, ...]
    batches: tuple[AtBatch, ...] = ()
    notes: tuple[str, ...] = ()


def plan(
    experiment: Experiment,
    target: Target,
    devices: Sequence[Any],
    *,
    what: Sequence[str] = ("train",),
    batches: Sequence[int] = (),
    largest: bool = False,
    robust: float = 0.5,
    hlo: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Compile the programs of an experiment for a target, and estimate their requirements.

    Args:
      experiment: the run.
      target: the type of the devices.
      devices: from `targets.devices_of`.
      what: from `WHAT`.
      batches: further batch sizes for which training is compiled.
      largest: find the largest batch that fits.
      robust: assumed robust accuracy under AutoAttack, in [0, 1].
      hlo: a folder for the texts of the programs.
      tell: called with lines on the progress.
    """
    sizes = programs.sizes_of(experiment)
    place = (sizes, devices, target.platform)
    train = programs.training(experiment, *place)

    def compiled(program: Program) -> Estimate:
        tell(f"compiling {program.name} for {program.devices} x {target.title}")
        return estimate(program, target, hlo=hlo)

    found: dict[str, Estimate] = {}
    stages: list[Stage] = []
    if "train" in what:
        found["train"] = compiled(train)
        stages.append(_training_stage(experiment, sizes, found["train"]))
    if "evaluate" in what:
        for name in _attacks(experiment):
            during = name in experiment.evaluation.attacks
            count = sizes.monitor if during else sizes.test
            program = programs.evaluation(experiment, *place, name, count, train=train if during else None)
            found[name] = compiled(program)
        stages += _evaluation_stages(experiment, sizes, found)
    if "autoattack" in what:
        settings = evaluation_attack(experiment, "aa")
        assert isinstance(settings, AutoAttack)
        blocks = {}
        for member in settings.members():
            blocks[member.name] = compiled(programs.autoattack(experiment, *place, member, settings))
        stages.append(_autoattack_stage(settings, sizes, blocks, robust))
        found |= blocks
    return Plan(
        experiment=experiment,
        target=target,
        devices=len(devices),
        sizes=sizes,
        parameters=programs.count(train.arguments[0].params),
        estimates=tuple(found.values()),
        stages=tuple(stages),
        batches=_at_batches(experiment, place, compiled, found.get("train"), batches, largest=largest),
        notes=tuple(_notes(experiment, train, len(devices))),
    )


def _attacks(experiment: Experiment) -> list[str]:
    """The attacks, except AutoAttack and minimum norms: those during training, then those afterwards."""
    names = (*experiment.evaluation.attacks, *experiment.evaluation.final_attacks)
    return [name for name in dict.fromkeys(names) if not is_autoattack(name) and not is_minimum_norm(name)]


def _training_stage(experiment: Experiment, sizes: Sizes, train: Estimate) -> Stage:
    steps = experiment.steps(sizes.train)
    epoch = epoch_seconds(train, steps, experiment.log.steps_per_chunk)
    how = f"{experiment.epochs:,} epochs of {steps:,} steps"
    return Stage("training", experiment.epochs * epoch, how)


def _evaluation_stages(experiment: Experiment, sizes: Sizes, found: Mapping[str, Estimate]) -> list[Stage]:
    fields = experiment.evaluation
    times = evaluated_epochs(experiment.epochs, fields.every_epochs)
    during = [name for name in fields.attacks if name in found]
    final = [name for name in fields.final_attacks if name in found]
    each = (1 + len(experiment.further)) * sum(block_seconds(found[name], sizes.monitor) for name in during)
    checkpoints = len(checkpoints_of(experiment))
    last = sum(block_seconds(found[name], sizes.test) for name in final)
    return [
        Stage(
            "evaluation in training", times * each, f"{times:,} times {', '.join(during)} on {sizes.monitor:,} images"
        ),
        Stage(
            "evaluation",
            checkpoints * last,
            f"{checkpoints} checkpoints under {', '.join(final)} on {sizes.test:,} images",
        ),
    ]


def _autoattack_stage(settings: AutoAttack, sizes: Sizes, found: Mapping[str, Estimate], robust: float) -> Stage:
    seconds = 0.0
    for member in settings.members():
        runs = member.runs * max(min(member.targets, sizes.classes - 1), 1)
        seconds += block_seconds(found[member.name], math.ceil(robust * sizes.test) * runs)
    how = f"1 checkpoint, {robust:.0%} of {sizes.test:,} images robust throughout, the others broken at once"
    return Stage("AutoAttack", seconds, how)


def _at_batches(
    experiment: Experiment,
    place: tuple[Sizes, Sequence[Any], str],
    compiled: Callable[[Program], Estimate],
    train: Estimate | None,
    batches: Sequence[int],
    *,
    largest: bool,
) -> tuple[AtBatch, ...]:
    """Training at other batch sizes: the requested ones, and those in the search for the largest that fits."""
    sizes, devices, _ = place
    known = {experiment.batch_size: train} if train else {}

    def at(batch: int) -> Estimate:
        if batch not in known:
            program = programs.training(experiment.with_fields({"batch_size": batch}), *place)
            known[batch] = compiled(dataclasses.replace(program, name="train"))
        return known[batch]

    for batch in batches:
        if batch > sizes.train:
            raise InputError(f"batches={batch} is more than the {sizes.train:,} training images")
        at(batch)
    if largest:
        unit = 8 * len(devices)
        most = sizes.train // unit * unit
        for batch in (experiment.batch_size, 2 * experiment.batch_size):
            at(min(batch, most))
        while len(known) < LARGEST_COMPILES:
            peaks = {batch: each.memory.peak for batch, each in known.items()}
            limit = next(iter(known.values())).target.memory
            guess = min(next_batch(peaks, limit, unit), most)
            if guess in known:
                break
            at(guess)
    if not batches and not largest:
        return ()
    return tuple(AtBatch(batch, known[batch]) for batch in sorted(known))


def _notes(experiment: Experiment, train: Program, devices: int) -> list[str]:
    found = []
    if info := programs.assumed(experiment):
        found.append(
            f"{experiment.dataset.name} does not exist; the plan assumes {info.title}: {info.train:,} training images, "
            f"{info.test:,} test images, {info.classes:,} classes"
        )
    if train.devices < devices:
        found.append(f"only {train.devices} of {devices} devices can share a batch of {experiment.batch_size} equally")
    return found
