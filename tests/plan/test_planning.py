"""Whole plans, compiled for this machine's CPU in place of a GPU: how often each program counts, and what is told."""

import dataclasses
import json
import math

import jax
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.forward import forward_flop
from piat_jax.experiment import config
from piat_jax.plan import planning
from piat_jax.plan.estimate import Memory, loop_seconds
from piat_jax.plan.planning import plan
from piat_jax.plan.report import labelled, to_json, to_text
from piat_jax.plan.targets import TARGETS

TARGET = dataclasses.replace(TARGETS["h100"], platform="cpu")
SMALL = {
    "epochs": 5,
    "batch_size": 32,
    "dataset.train_examples": 200,
    "dataset.test_examples": 100,
    "attack.steps": 2,
    "model.options.width": 8,
    "model.options.stage_sizes": (1,),
    "evaluation.batch_size": 40,
    "evaluation.every_epochs": 2,
    "evaluation.attacks": ("clean", "pgd3"),
    "evaluation.select": "pgd3",
    "evaluation.final_attacks": ("clean", "aa"),
    "log.steps_per_chunk": 4,
}


@pytest.fixture(scope="module")
def made():
    experiment = config.load("embedded:nmse+piat", SMALL)
    return plan(experiment, TARGET, jax.devices()[:1], what=planning.WHAT, robust=0.25, batches=(16, 64))


def by_name(made):
    return {each.name: each for each in made.estimates}


def test_the_programs(made):
    assert [(each.name, each.examples) for each in made.estimates] == [
        ("train", 32),
        ("evaluate clean", 40),
        ("evaluate pgd3", 40),
        ("apgd-ce", 40),
        ("apgd-t", 40),
        ("fab-t", 40),
        ("square", 40),
    ]
    assert all(each.fits for each in made.estimates)


def test_the_operations_of_a_step_are_those_of_its_forwards(made):
    experiment, train = made.experiment, by_name(made)["train"]
    forward = 32 * forward_flop(experiment.build_model(10), (28, 28, 1))
    # Two steps of two, then twice a forward and both gradients; but the elements' arithmetic and the images' gradient.
    flops = train.step.total(lambda kernel: kernel.flops)
    assert 0.75 * 2 * (2 + 3) * forward < flops < 2 * (2 + 3) * forward
    loops = [loop for label, _, loop in labelled(train) if label == "loop"]
    (attack,) = (loop for loop in loops if any(kernel.is_convolution for kernel in loop.kernels))
    assert (attack.trips, attack.known) == (2, "exactly")


def test_the_stages_count_what_the_run_does(made):
    found = by_name(made)
    train, clean, pgd = (found[name] for name in ("train", "evaluate clean", "evaluate pgd3"))
    stages = {stage.name: stage.seconds for stage in made.stages}
    # 6 steps in two calls; evaluations after epochs 2, 4 and 5, in three blocks; two checkpoints.
    assert stages["training"] == pytest.approx(5 * (6 * train.step_seconds + 2 * train.outside_seconds))
    assert stages["evaluation in training"] == pytest.approx(3 * 3 * (clean.step_seconds + pgd.step_seconds))
    assert stages["evaluation"] == pytest.approx(2 * 3 * clean.step_seconds)
    # 25 images, at 9 targets each for two of the attacks.
    once = math.ceil(25 / 40) * (found["apgd-ce"].step_seconds + found["square"].step_seconds)
    nine = math.ceil(225 / 40) * (found["apgd-t"].step_seconds + found["fab-t"].step_seconds)
    assert stages["AutoAttack"] == pytest.approx(once + nine)


def test_more_images_take_more_memory(made):
    assert [batch for batch, _ in made.batches] == [16, 32, 64]
    peaks = [train.memory.peak for _, train in made.batches]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[-1]
    assert made.batches[1].train is made.estimates[0]


def test_memory_beside_a_program_is_what_the_run_keeps_there(made):
    found = by_name(made)
    image, weights = 28 * 28 + 4, 4 * made.parameters
    train = found["train"].memory
    assert train.beside == pytest.approx(100 * image + weights, rel=0.02)  # test images, and PIAT's anchor
    assert train.arguments == pytest.approx(200 * image + 2 * weights, rel=0.02)  # images, weights and momentum
    assert found["evaluate pgd3"].memory.beside == pytest.approx(200 * image + 3 * weights, rel=0.02)
    assert found["apgd-ce"].memory.beside == 0


def test_the_report_says_it_all(made):
    text = to_text(made, price=3.0, kinds=2)
    title, *lines = text.splitlines()
    assert title.startswith(
        f"nmse+piat: small_resnet ({made.parameters:,} parameters, float32) on embedded (200 images)"
    )
    assert "100 epochs" not in title
    assert "on 1 x NVIDIA H100 SXM 80 GB" in title
    for start in (
        "MB on a device",
        "training at batch",
        "what a device does",
        "the run",
        "AutoAttack",
        '"At least" is',
    ):
        assert any(line.startswith(start) for line in lines), start
    assert sum(line.strip().startswith(". ") for line in lines) > 10
    assert "dollars" in text
    assert "dollars" not in to_text(made)
    assert "largest that fits, of those compiled: 64" in text
    assert max(map(len, lines)) < 150


def test_the_json_has_the_same_numbers(made):
    found = json.loads(json.dumps(to_json(made, price=36.0)))
    train = found["programs"][0]
    assert train["at_least_seconds"] == made.estimates[0].step_seconds
    assert train["memory"]["peak"] == made.estimates[0].memory.peak
    assert sum(part["trips"] * part["at_least_seconds"] for part in train["parts"] if part["part"] == "loop") > 0
    assert [stage["dollars"] for stage in found["stages"]] == pytest.approx(
        [stage.seconds / 100 for stage in made.stages]
    )
    assert found["experiment"]["method"] == "nmse+piat"
    assert found["target"]["devices"] == 1


def test_what_stands_out_is_told(made):
    low = dataclasses.replace(made, experiment=made.experiment.with_fields({"model.dtype": "bfloat16"}))
    assert "convolutions are in float32, not in bfloat16" in to_text(low)
    assert "though bfloat16" not in to_text(made)
    large = dataclasses.replace(made.estimates[0], memory=Memory(1e12, 0, 0, 0))
    assert "does not fit" in to_text(dataclasses.replace(made, estimates=(large,)))


def test_devices_that_cannot_share_the_batch_are_noted():
    experiment = config.load("embedded:pgd_at", {**SMALL, "batch_size": 6})
    made = plan(experiment, TARGET, jax.devices()[:4], what=["train"])
    assert made.estimates[0].devices == 3
    assert "note: only 3 of 4 devices can share a batch of 6 equally" in to_text(made)


def test_the_largest_batch_is_found_on_the_line():
    experiment = config.load("embedded:pgd_at", {**SMALL, "dataset.train_examples": 400})
    made = plan(experiment, TARGET, jax.devices()[:1], what=["train"], batches=[160])
    limit = made.batches[-1].train.memory.peak  # so 160 fits and 168 does not
    target = dataclasses.replace(TARGET, memory=limit)
    found = plan(experiment, target, jax.devices()[:1], what=["train"], largest=True)
    assert len(found.batches) <= planning.LARGEST_COMPILES
    assert max(batch for batch, train in found.batches if train.fits) in (152, 160)
    assert any(not train.fits for _, train in found.batches) or found.batches[-1].batch == 160


def test_a_batch_of_more_than_there_is_is_refused():
    experiment = config.load("embedded:pgd_at", SMALL)
    with pytest.raises(InputError, match="batches=201 is more than the 200 training images"):
        plan(experiment, TARGET, jax.devices()[:1], what=[], batches=[201])


def test_a_call_that_ends_early_says_so(made):
    assert by_name(made)["apgd-ce"].ends_early
    assert not by_name(made)["train"].ends_early
    square = by_name(made)["square"]
    assert square.step_seconds == loop_seconds(square.root, TARGET)
