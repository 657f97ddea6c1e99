import re
import shlex

import numpy as np
import pytest

from piat_jax.cli import data as cli_data
from piat_jax.cli import errors
from piat_jax.core.checks import InputError
from piat_jax.data import KNOWN, Split
from piat_jax.experiment import config, data, notes
from piat_jax.experiment.experiment import differences
from piat_jax.experiment.validate import problems
from piat_jax.training.streaming import Stream

IMAGES = np.arange(20 * 4 * 4, dtype=np.int32).reshape(20, 4, 4, 1).astype(np.uint8)
TRAIN = Split(IMAGES, (np.arange(20) % 3).astype(np.int32))


def experiment_with(**fields):
    base = config.load("cifar10_resnet18:pgd_at", {"batch_size": 10})
    return base.with_fields({f"dataset.{name}": value for name, value in fields.items()})


def write_extra(path, shape=(4, 4, 1), label=2, count=5, save=np.savez):
    save(path, image=np.full((count, *shape), count, np.uint8), label=np.array([0, 1, 2, 0, label] * 8)[:count])
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
        ({"shape": (4, 5, 1)}, 0.5, r"extra images are \(4, 5, 1\), the training images \(4, 4, 1\); give one shape"),
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


@pytest.fixture
def files(tmp_path):
    return tuple(write_extra(tmp_path / f"{count}.npz", count=count) for count in (5, 15, 40))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("weights", "shares"),
    # Seven of ten: in proportion to 5, 15, 40 that is 0.58, 1.75, 4.67.
    [((), (0, 2, 5)), ((2.0, 1.0, 1.0), (3, 2, 2)), ((1, 5, 1), (1, 5, 1))],
)
def test_files_share_the_generated_part_of_a_batch(files, weights, shares, stream):
    experiment = experiment_with(extra=files, extra_weights=weights, stream=stream, epoch_steps=3)
    if 0 in shares:
        with pytest.raises(InputError, match=r"dataset.extra='.*/5.npz' would give none of the 7 generated examples"):
            data.load_extra(experiment, TRAIN, 3)
        return
    extra = data.load_extra(experiment, TRAIN, 3)
    recipe = experiment.build_recipe(20, num_extra=[5, 15, 40])
    assert (recipe.extra_per_batch, recipe.epoch_steps, recipe.steps(20)) == (shares, 3, 3)
    placed = data.place_data(experiment, TRAIN, extra)
    assert (placed.count, placed.extra_counts) == (20, (5, 15, 40))
    if stream:
        placed.check(recipe.batch_size, recipe.extra_per_batch, recipe.epoch_steps)
        assert placed.steps == 3
    else:
        assert [int(images[0, 0, 0, 0]) for images, _ in placed.sources] == [5, 15, 40]


def test_a_recipe_is_told_of_smoothing_where_there_is_some(files):
    plain = experiment_with(extra=files).build_recipe(20)
    assert (plain.extra_smoothing, plain.smoothing_over, plain.epoch_steps) == ((), "others", 0)
    assert experiment_with(extra_smoothing=(0.1,)).build_recipe(20).extra_smoothing == ()  # of no examples
    experiment = experiment_with(extra=files, extra_smoothing=(0.1, 0.0, 0.2))
    recipe = experiment.with_fields({"objective.smoothing_over": "all"}).build_recipe(20)
    assert (recipe.extra_smoothing, recipe.smoothing_over) == ((0.1, 0.0, 0.2), "all")


def test_a_file_without_examples_is_named(files, tmp_path):
    empty = write_extra(tmp_path / "empty.npz", count=0)
    with pytest.raises(InputError, match=r"dataset.extra='.*/empty.npz' has no examples; leave it out"):
        data.load_extra(experiment_with(extra=(files[0], empty)), TRAIN, 3)


def test_what_does_not_fit_on_the_device_is_to_be_streamed(files, monkeypatch):
    experiment = experiment_with(extra=files[1:], extra_weights=(1, 1))
    extra = data.load_extra(experiment, TRAIN, 3)
    size = (20 + 15 + 40) * 16
    monkeypatch.setattr(data, "device_memory", lambda: size - 1)
    message = r"images take 1.2 kB, 880 bytes of them generated, and the device has 1.2 kB; set dataset.stream=True"
    with pytest.raises(InputError, match=message):
        data.place_data(experiment, TRAIN, extra)
    monkeypatch.setattr(data, "device_memory", lambda: 300)
    with pytest.raises(InputError, match=r"images take 320 bytes and the device has 300 bytes; set dataset.stream"):
        data.place_data(experiment_with(), TRAIN, ())
    streamed = experiment.with_fields({"dataset.stream": True})
    assert isinstance(data.place_data(streamed, TRAIN, extra), Stream)
    for there in (size, None):  # a device that does not say is tried
        monkeypatch.setattr(data, "device_memory", lambda there=there: there)
        assert data.place_data(experiment, TRAIN, extra).extra_count == 55


def test_large_compressed_files_are_named_with_the_command(files, tmp_path, monkeypatch):
    packed = write_extra(tmp_path / "my packed.npz", count=40, save=np.savez_compressed)
    experiment = experiment_with(extra=(*files[1:], packed))
    extra = data.load_extra(experiment, TRAIN, 3)
    assert [isinstance(split.images, np.memmap) for split in extra] == [True, True, False]
    assert notes.unpacked(experiment, extra) == []
    monkeypatch.setattr(notes, "UNPACKED_BYTES", 640)
    (line,) = notes.unpacked(experiment, extra)
    assert line.startswith(f"dataset.extra: {packed} is compressed, so its images take 640 bytes of memory")
    command = line.partition("mapped, they take none: ")[2]
    program, *arguments = shlex.split(command)
    assert program == "piat-data"
    assert errors.run(cli_data.main, arguments) == 0
    (mapped,) = data.load_extra(experiment_with(extra=str(tmp_path / "my packed_mapped.npz")), TRAIN, 3)
    assert isinstance(mapped.images, np.memmap)
    np.testing.assert_array_equal(mapped.images, extra[2].images)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"extra": ("a", "")}, r"dataset.extra=\('a', ''\) has an empty path; leave it out"),
        (
            {"extra": ("a", "b"), "extra_weights": (1,)},
            r"extra_weights=\(1,\) for 2 files in dataset.extra; give one",
        ),
        ({"extra_weights": (1,)}, r"extra_weights=\(1,\) for 0 files"),
        ({"extra": ("a", "b"), "extra_weights": (1, 0)}, r"extra_weights=\(1, 0\) must be above 0"),
        ({"extra": ("a", "b"), "extra_weights": (1, float("nan"))}, r"extra_weights=\(1, nan\) must be above 0"),
        ({"extra": "a", "extra_smoothing": (0.1, 0.2)}, r"extra_smoothing=\(0.1, 0.2\) for 1 files"),
        ({"extra": "a", "extra_smoothing": ()}, r"extra_smoothing=\(\) for 1 files"),
        ({"extra": ("a", "b"), "extra_smoothing": (0.1, 1.2)}, r"extra_smoothing=\[0.1 1.2\] must be in \[0, 1\]"),
        ({"epoch_steps": -1}, r"epoch_steps=-1 must be in \[0, "),
        ({"epoch_steps": 2**31 // 10}, r"epoch_steps=214748364 must be in \[0, "),
    ],
)
def test_problems_of_generated_examples_are_told(fields, message):
    told = problems(experiment_with(**fields))
    if fields.get("epoch_steps") == 2**31 // 10:  # as many batches of ten as have indices in int32
        assert told == []
        told = problems(experiment_with(epoch_steps=2**31 // 10 + 1))
        message = message.replace("364", "365")
    assert re.search(message, "\n".join(told)), told


@pytest.mark.parametrize("method", ["las", "rat", "trades+rat+awp"])
def test_methods_that_go_by_the_label_have_no_smoothed_ones(method):
    base = config.load("cifar10_resnet18:" + method, checked=False)
    told = problems(base.with_fields({"dataset.extra": "a.npz", "dataset.extra_smoothing": (0.1,)}))
    assert any(re.search(r"dataset.extra_smoothing=\(0.1,\): (LAS|RAT) uses only the label", line) for line in told)
    for fields in ({"dataset.extra": "a.npz"}, {"dataset.extra_smoothing": (0.1,)}):
        assert not any("uses only the label" in line for line in problems(base.with_fields(fields)))


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
