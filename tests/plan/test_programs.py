"""The programs that are planned are those that a run compiles: of shapes alone, they lower to the same text."""

import re

import jax
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.evaluation import AutoAttack, sending
from piat_jax.experiment import Run, config, evaluate, train
from piat_jax.experiment.evaluation import evaluation_attack
from piat_jax.plan import programs
from piat_jax.plan.programs import Sizes, assumed, bytes_on_a_device, sizes_of
from piat_jax.programs.jit import ProgramJit, program_jit
from piat_jax.programs.platform import platform
from tests.data.encoded_sets import write_set

SMALL = {
    "epochs": 1,
    "dataset.train_examples": 64,
    "dataset.test_examples": 24,
    "attack.steps": 2,
    "model.options.width": 8,
    "model.options.stage_sizes": (1,),
    "evaluation.batch_size": 16,
    "evaluation.attacks": ("clean", "pgd2"),
    "evaluation.select": "pgd2",
    "evaluation.final_attacks": ("clean", "pgd2", "apgd-ce3", "apgd-t3", "fab-t3", "square4"),
    "log.tensorboard": False,
}
FEW = {"evaluation.final_attacks": ("clean", "apgd-ce3")}
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
        fresh = jax.jit(self.program, **self.options)
        found.setdefault(self.fn.__name__, {})[text_of(fresh.lower(*arguments, **keywords))] = None
        return call(self, *arguments, **keywords)

    monkeypatch.setattr(ProgramJit, "__call__", record)
    return {name: found.setdefault(name, {}) for name in ("train_steps", "_correct_block", "_attack")}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("nmse+piat", {}),
        ("trades+awp+ema", {"fsdp": True, "nonfinite": "skip", **FEW}),
        (
            "pgd_at",
            {"dataset.stream": True, "evaluation.precision": "default", "dataset.validation_examples": 20, **FEW},
        ),
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


@pytest.mark.parametrize("stream", [False, True])
def test_with_files_of_generated_images_they_are_too(stream, lowered, tmp_path):
    for name, count in (("a.npz", 30), ("b.npz", 70)):
        np.savez(tmp_path / name, image=np.zeros((count, 28, 28, 1), np.uint8), label=np.zeros(count, np.int64))
    of_data = {
        "extra": (str(tmp_path / "a.npz"), str(tmp_path / "b.npz")),
        "extra_smoothing": (0.1, 0.0),
        "epoch_steps": 3,
        "stream": stream,
    }
    more = {f"dataset.{name}": value for name, value in of_data.items()} | {"evaluation.attacks": ("clean",)}
    experiment = config.load("embedded:pgd_at", {**SMALL, **more, "evaluation.select": "clean"})
    run = Run(tmp_path / "run")
    train(experiment, run)
    assert [record["step"] for record in run.metrics()] == [3]
    sizes = sizes_of(experiment)
    assert sizes.extra == (30, 70)
    planned = programs.training(experiment, sizes, jax.devices(), PLATFORM)
    assert planned.keywords["recipe"].extra_per_batch == (7, 15)  # 22 of 32
    assert list(lowered["train_steps"]) == [text_of(planned.lower())]


@pytest.mark.parametrize("sent", [False, True])
def test_with_encoded_images_they_are_too(sent, lowered, tmp_path, monkeypatch):
    monkeypatch.setattr(sending, "ON_DEVICE_BYTES", 0 if sent else 2**28)
    folder = write_set(tmp_path / "set", "folders", train=72, test=8)
    fields = {"dataset.name": str(folder), "dataset.image_size": 16, "batch_size": 32, "evaluation.attacks": ("clean",)}
    small = {name: value for name, value in SMALL.items() if not name.startswith("dataset.")}
    experiment = config.load("embedded:pgd_at", {**small, **fields, "evaluation.select": "clean"})
    train(experiment, Run(tmp_path / "run"))
    sizes = sizes_of(experiment)
    assert sizes == Sizes((16, 16, 3), 3, 72, 8, 8)
    planned = programs.training(experiment, sizes, jax.devices(), PLATFORM)
    assert list(lowered["train_steps"]) == [text_of(planned.lower())]
    during = programs.evaluation(experiment, sizes, jax.devices(), PLATFORM, "clean", sizes.monitor)
    assert during.keywords.get("sent", False) == sent
    assert list(lowered["_correct_block"]) == [text_of(during.lower())]
    assert (planned.beside - bytes_on_a_device(planned.idle) == 8 * (16 * 16 * 3 + 4)) == (not sent)


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({}, Sizes((32, 32, 3), 10, 50_000, 10_000, 10_000)),
        ({"dataset.name": "tiny_imagenet"}, Sizes((64, 64, 3), 200, 100_000, 10_000, 10_000)),
        ({"dataset.validation_examples": 1000}, Sizes((32, 32, 3), 10, 49_000, 1000, 10_000)),
        (
            {"dataset.train_examples": 2000, "dataset.test_examples": 100, "dataset.validation_examples": 50},
            Sizes((32, 32, 3), 10, 1950, 50, 100),
        ),
    ],
)
def test_a_published_data_set_has_its_sizes_without_its_files(fields, sizes):
    experiment = config.load("cifar10_resnet18:nmse", {"dataset.data_dir": "/nowhere", **fields})
    assert sizes_of(experiment) == sizes


def test_imagenet_has_its_sizes_where_its_folder_is_not_there(tmp_path):
    fields = {"dataset.name": str(tmp_path / "ImageNet"), "dataset.image_size": 160}
    experiment = config.load("imagenet_resnet50:nmse+piat", fields)
    assert sizes_of(experiment) == Sizes((160, 160, 3), 1000, 1_276_167, 5000, 50_000)
    assert assumed(experiment).title == "ImageNet-1k"
    (tmp_path / "ImageNet").mkdir()
    assert assumed(experiment) is None
    with pytest.raises(InputError, match="ImageNet holds no encoded images"):
        sizes_of(experiment)
    with pytest.raises(InputError, match="elsewhere"):
        sizes_of(config.load("imagenet_resnet50", {"dataset.name": str(tmp_path / "elsewhere")}))


def test_one_without_a_name_is_read():
    experiment = config.load("embedded:nmse", {"dataset.train_examples": 100, "dataset.validation_examples": 20})
    assert sizes_of(experiment) == Sizes((28, 28, 1), 10, 80, 20, 1000)
    with pytest.raises(InputError, match="/nowhere"):
        sizes_of(config.load("cifar10_resnet18:nmse", {"dataset.name": "/nowhere/of/mine"}))


def test_generated_images_are_counted(tmp_path):
    path = tmp_path / "extra.npz"
    np.savez(path, image=np.zeros((7, 32, 32, 3), np.uint8), label=np.zeros(7, np.int64))
    experiment = config.load("cifar10_resnet18:nmse", {"dataset.extra": str(path)})
    assert sizes_of(experiment).extra == (7,)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dataset.train_examples": 50_001}, "dataset.train_examples=50001 is more than the 50000 of 'cifar10'"),
        ({"dataset.test_examples": 10_001}, "dataset.test_examples=10001 is more than the 10000"),
        ({"dataset.validation_examples": 50_000}, "leaves nothing of the 50000 training examples"),
    ],
)
def test_more_examples_than_there_are_are_refused(fields, said):
    with pytest.raises(InputError, match=said):
        sizes_of(config.load("cifar10_resnet18:nmse", fields))


def test_bytes_are_those_of_one_device():
    devices = jax.devices()
    experiment = config.load("embedded:nmse+piat", SMALL)
    sizes = sizes_of(experiment)
    alone, whole, parts = (
        programs.training(each, sizes, which, PLATFORM)
        for each, which in (
            (experiment, devices[:1]),
            (experiment, devices),
            (experiment.with_fields({"fsdp": True}), devices),
        )
    )
    state, images = alone.arguments[0], 64 * (28 * 28 + 4)
    numbers = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert bytes_on_a_device(state) == numbers == bytes_on_a_device(whole.arguments[0])
    assert bytes_on_a_device(alone.arguments[2]) == images
    assert bytes_on_a_device(parts.arguments[0]) < numbers
    # The anchor is as large as the weights and statistics; the monitor has 24 images.
    weights = bytes_on_a_device((state.params, state.model_state))
    assert alone.beside == weights + 24 * (28 * 28 + 4)
    assert whole.beside == alone.beside > parts.beside


def test_what_was_traced_for_another_platform_is_traced_anew(monkeypatch):
    traced = []

    def program(x):
        traced.append(platform())
        return x + 1

    shape = jax.ShapeDtypeStruct((2,), jax.numpy.float32)
    for target in ("gpu", "tpu", "gpu"):
        made = programs.Program("one", program_jit()(program), (shape,), {}, target, devices=1, examples=2)
        made.lower()
    assert traced == ["gpu", "tpu", "gpu"]
    assert platform() == "cpu"
