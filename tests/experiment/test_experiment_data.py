import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import KNOWN, Split
from piat_jax.experiment import config, data
from piat_jax.experiment.experiment import differences
from piat_jax.experiment.validate import problems
from piat_jax.training.streaming import Stream

IMAGES = np.arange(20 * 4 * 4, dtype=np.int32).reshape(20, 4, 4, 1).astype(np.uint8)
TRAIN = Split(IMAGES, (np.arange(20) % 3).astype(np.int32))


def experiment_with(**fields):
    base = config.load("cifar10_resnet18:pgd_at", {"batch_size": 10})
    return base.with_fields({f"dataset.{name}": value for name, value in fields.items()})


def write_extra(path, shape=(4, 4, 1), label=2):
    np.savez(path, image=np.zeros((5, *shape), np.uint8), label=np.array([0, 1, 2, 0, label]))
    return str(path)


@pytest.mark.parametrize("stream", [False, True])
def test_generated_examples_are_placed_beside_the_others(tmp_path, stream):
    experiment = experiment_with(extra=write_extra(tmp_path / "extra.npz"), stream=stream)
    assert experiment.extra_per_batch == experiment.build_recipe(20).extra_per_batch == 7
    placed = data.place_data(experiment, TRAIN, data.load_extra(experiment, TRAIN, 3))
    assert isinstance(placed, Stream) == stream
    assert (placed.count, placed.extra_count) == (20, 5)


@pytest.mark.parametrize(
    ("extra", "fraction", "message"),
    [
        ({"label": 3}, 0.5, "dataset.extra='.*extra.npz' has label 3 for 3 classes"),
        ({"shape": (4, 5, 1)}, 0.5, r"extra images are \(4, 5, 1\), the training images \(4, 4, 1\); give one kind"),
        ({}, 0.01, "0 of batch_size=10 would be extra examples; give an extra_fraction that leaves at least one"),
        ({}, 1.0, "10 of batch_size=10 would be extra examples"),
    ],
)
def test_generated_examples_that_do_not_fit_are_named(tmp_path, extra, fraction, message):
    experiment = experiment_with(extra=write_extra(tmp_path / "extra.npz", **extra), extra_fraction=fraction)
    with pytest.raises(InputError, match=message):
        data.load_extra(experiment, TRAIN, 3)


def test_data_is_told_from_other_data():
    known = data.describe_data(TRAIN, TRAIN, (), "by class")
    assert known == data.describe_data(TRAIN, TRAIN, (), "by class")
    labels, images = TRAIN.labels.copy(), TRAIN.images.copy()
    labels[7] += 1
    images[19, 3, 3] += 1
    part = Split(*(x[:10] for x in TRAIN))
    other = data.describe_data(Split(TRAIN.images, labels), Split(images, TRAIN.labels), (TRAIN, part), "by class")
    changed = [line.partition(":")[0] for line in differences(known, other)]
    assert {name for name in changed if not name.startswith("extra")} == {"train.labels", "monitor.images"}
    assert other["extra"] == known["train"]
    assert other["extra 2"]["examples"] == 10
    assert data.describe_data(part, TRAIN, (), "by class")["train"]["examples"] == 10


def test_problems_of_the_group_are_all_told():
    experiment = experiment_with(name="cifar11", policy="autoaugmnt", cutout=-1, extra_fraction=1.5)
    told = "\n".join(problems(experiment))
    for message in (
        "dataset='cifar11' is unknown; did you mean 'cifar10'",
        "dataset.policy='autoaugmnt' is unknown; did you mean 'autoaugment'",
        "dataset.cutout=-1 must be at least 0",
        "dataset.extra_fraction=1.5 must be in (0, 1]",
    ):
        assert message in told


@pytest.mark.parametrize("method", ["pgd_at+swa", "pgd_at+piat"])
def test_streamed_images_are_not_there_to_estimate_statistics_on(method):
    experiment = config.load(f"cifar10_resnet18:{method}")
    experiment = experiment.with_fields({"dataset.stream": True, "piat.batch_stats": "recompute"})
    assert any("dataset.stream=True keeps the training images on the host" in line for line in problems(experiment))


def test_the_configs_crop_and_flip_as_the_table_says():
    for name in ("cifar10_resnet18", "cifar100_resnet18", "svhn_resnet18", "fashion_mnist"):
        fields = config.load(name).dataset
        assert (fields.crop_padding, fields.flip) == (KNOWN[fields.name].crop_padding, KNOWN[fields.name].flip), name
