"""The programs that are planned are those that a run compiles: of shapes alone, they lower to the same text."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from piat_jax.benchmark.ours import NETWORKS  # noqa: F401
from piat_jax.core.checks import InputError
from piat_jax.evaluation import AutoAttack
from piat_jax.experiment import Run, config, evaluate, train
from piat_jax.experiment.evaluation import evaluation_attack
from piat_jax.plan import programs
from piat_jax.plan.programs import Sizes, bytes_on_a_device, sizes_of
from piat_jax.programs.jit import ProgramJit

SMALL = {
    "epochs": 1,
    "dataset.train_examples": 64,
    "dataset.test_examples": 24,
    "attack.steps": 2,
    "model.options.width": 4,
    "evaluation.batch_size": 16,
    "evaluation.attacks": ("clean", "pgd2"),
    "evaluation.select": "pgd2",
    "evaluation.final_attacks": ("clean", "pgd2", "apgd-ce3", "apgd-t3", "fab-t3", "square4"),
    "log.tensorboard": False,
}
PLATFORM = "cpu"


def text_of(lowered):
    """Without the numbers of functions, which count what was traced before."""
    return re.sub(r"@(\w+?)_\d+\b", r"@\1", lowered.as_text())


@pytest.fixture
def lowered(monkeypatch):
    """What a run's whole programs are lowered to, by name, in the order in which they are called."""
    found = {}
    call = ProgramJit.__call__

    def record(self, *arguments, **keywords):
        fresh = jax.jit(self.fn, **self.options)
        found.setdefault(self.fn.__name__, {})[text_of(fresh.lower(*arguments, **keywords))] = None
        return call(self, *arguments, **keywords)

    monkeypatch.setattr(ProgramJit, "__call__", record)
    return {name: found.setdefault(name, {}) for name in ("train_steps", "_correct_block", "_attack")}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("nmse+piat", {}),
        ("trades+awp+ema", {"fsdp": True, "nonfinite": "skip"}),
        ("pgd_at", {"dataset.stream": True, "evaluation.precision": "default", "dataset.validation_examples": 20}),
    ],
)
def test_of_shapes_alone_they_are_the_runs_programs(method, more, lowered, tmp_path):
    experiment = config.load(f"embedded:{method}", {**SMALL, **more})
    run = Run(tmp_path / "run")
    train(experiment, run)
    sizes, devices = sizes_of(experiment), jax.devices()
    planned = programs.training(experiment, sizes, devices, PLATFORM)
    assert planned.devices == len(devices) > 1
    assert list(lowered["train_steps"]) == [text_of(planned.lower())]
    during = [
        text_of(programs.evaluation(experiment, sizes, devices, PLATFORM, name, sizes.monitor).lower())
        for name in experiment.evaluation.attacks
    ]
    assert list(lowered["_correct_block"]) == during

    lowered["_correct_block"].clear()
    evaluate(experiment, run)
    final, members = [], []
    for name in experiment.evaluation.final_attacks:
        attack = evaluation_attack(experiment, name)
        if isinstance(attack, AutoAttack):
            (member,) = attack.members()
            members.append(programs.autoattack(experiment, sizes, devices, PLATFORM, member, attack))
        else:
            final.append(programs.evaluation(experiment, sizes, devices, PLATFORM, name, sizes.test))
    assert list(lowered["_correct_block"]) == [text_of(program.lower()) for program in final]
    called, texts = list(lowered["_attack"]), [text_of(program.lower()) for program in members]
    assert set(called) <= set(texts)  # where nothing is left to attack, an attack is not called
    assert called
