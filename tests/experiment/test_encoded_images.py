"""A run on encoded images of any size, from the config on."""

import os
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

import piat_jax
from piat_jax.cli import errors, evaluate
from piat_jax.core.checks import InputError, SavedAndStopped
from piat_jax.data.records import Decoding, RecordImages
from piat_jax.data.records.opening import read_records
from piat_jax.evaluation import Robustness
from piat_jax.experiment import config, data, notes, run_evaluation
from piat_jax.experiment.run_training import Listener
from piat_jax.experiment.validate import problems
from piat_jax.training.encoded_stream import EncodedStream
from tests.data.encoded_sets import write_set

SMALL = {
    "dataset.image_size": 16,
    "model.options.width": 2,
    "model.options.stage_sizes": (1,),
    "attack.steps": 1,
    "evaluation.attacks": ("clean",),
    "evaluation.select": "clean",
    "evaluation.final_attacks": ("clean",),
    "evaluation.every_epochs": 1,
    "log.tensorboard": False,
    "log.steps_per_chunk": 1,
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("encoded"), "folders", train=32, test=6)


class Stops(Listener):
    """Stops after so many chunks, as a signal would; keeps what it is told."""

    def __init__(self, after=0):
        self.after, self.chunks, self.notes = after, 0, []

    def note(self, text):
        self.notes.append(text)

    def chunk(self, epoch, done, total):
        self.chunks += 1
        if self.chunks == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


def train(folder, workdir, *, resume=False, after=0, epochs=2, **fields):
    listener = Stops(after)
    overrides = {**SMALL, "dataset.name": str(folder), **fields}
    options = {"overrides": overrides, "resume": resume, "listener": listener}
    run = piat_jax.train("embedded:nmse+piat", workdir, epochs=epochs, **options)
    return run, listener


def test_a_run_is_stopped_resumed_and_evaluated(folder, tmp_path):
    whole, _ = train(folder, tmp_path / "whole")
    with pytest.raises(SavedAndStopped, match="saved in epoch 2 after 2 of 4 steps"):
        train(folder, tmp_path / "part", after=6)
    part, _ = train(folder, tmp_path / "part", resume=True)
    one, other = (piat_jax.load(run.folder, checkpoint="final") for run in (whole, part))
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)
    assert one.about.image_shape == (16, 16, 3)
    for key in ("train_loss", "test_clean"):
        assert [record[key] for record in whole.metrics()] == [record[key] for record in part.metrics()]
    found = run_evaluation.evaluate(whole.experiment(), whole, checkpoints=["final"])
    assert found["num_examples"] == 6
    assert found["checkpoints"]["final"]["accuracy"]["clean"] == whole.metrics()[-1]["test_clean"]
    assert found["class_names"] == ["even", "odd", "third"]


def test_bad_images_are_skipped_and_counted_or_stop_a_run(tmp_path):
    folder = write_set(tmp_path / "set", "folders", train=16, test=6)
    for place in ("train/even", "test/odd"):
        path = sorted((folder / place).iterdir())[0]
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"test/odd/.* cannot be decoded as an image"):
        train(folder, tmp_path / "stops")
    _, listener = train(folder, tmp_path / "skips", **{"dataset.on_bad_image": "skip"})
    assert [line.split(":")[0] for line in listener.notes if "decoded" in line] == [
        "1 image to evaluate on is left out",
        "1 training image could not be decoded, replaced by the next one",
    ]


def experiment_with(**fields):
    return config.load("embedded:pgd_at", {"batch_size": 8}, checked=False).with_fields(
        {f"dataset.{name}": value for name, value in fields.items()}
    )


def test_the_config_says_how_images_are_decoded(folder):
    experiment = experiment_with(
        name=str(folder), image_size=24, resize=32, interpolation="bicubic", crop_scale=(0.5, 1.0), workers=3,
        validation_examples=9,
    )  # fmt: skip
    assert problems(experiment) == []
    whole, train, monitor = data.load_data(experiment)
    assert all(isinstance(split.images, RecordImages) for split in (whole.test, train, monitor))
    assert (len(train.labels), len(monitor.labels)) == (23, 9)
    decoding = train.images.decoding
    assert (decoding.size, decoding.short_side, decoding.interpolation, decoding.scale) == (
        24,
        32,
        "bicubic",
        (0.5, 1.0),
    )
    stream = data.place_data(experiment, train, ())
    assert isinstance(stream, EncodedStream)
    assert (stream.workers, stream.steps) == (3, 2)
    in_memory = data.in_memory(monitor, print)
    assert in_memory.images.shape == (9, 24, 24, 3)
    np.testing.assert_array_equal(in_memory.labels, monitor.labels)
    described = data.describe_data(train, monitor, (), "by class")
    assert described["train"]["image_shape"] == [24, 24, 3]
    assert described == data.describe_data(train, monitor, (), "by class")
    path = Path(monitor.images.name(0))
    before = path.read_bytes()
    try:
        path.write_bytes(before + b"0")
        assert described["monitor"] != data.describe_data(train, monitor, (), "by class")["monitor"]
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": 2}, "dataset.workers=2 is for encoded images; give dataset.image_size"),
        ({"name": "a/b", "image_size": -1}, "dataset.image_size=-1 must be at least 1"),
        ({"name": "a/b", "image_size": 8, "workers": -1}, "dataset.workers=-1 must be at least 0"),
        ({"name": "a/b", "image_size": 8, "crop_scale": (0.5, 0.1)}, r"dataset.crop_scale=\(0.5, 0.1\) decreases"),
        ({"name": "a/b", "image_size": 8, "on_bad_image": "no"}, "dataset.on_bad_image='no' is unknown"),
        ({"name": "cifar10", "image_size": 8}, "dataset.name='cifar10' is a data set of images of one size"),
        ({"test_list": "x.txt"}, "dataset.test_list='x.txt' is for encoded images; give dataset.image_size"),
        ({"name": "a/b", "image_size": 8, "resizing": "no"}, "dataset.resizing='no' is unknown"),
        ({"name": "a/b", "image_size": 8, "data_dir": "c"}, "is a path; leave out dataset.data_dir='c'"),
    ],
)
def test_what_does_not_go_together_is_named(fields, message):
    assert any(re.search(message, line) for line in problems(experiment_with(**fields)))


def test_statistics_are_not_estimated_anew_on_encoded_images():
    experiment = config.load("embedded:pgd_at+swa", checked=False)
    experiment = experiment.with_fields({"dataset.image_size": 8, "dataset.name": "a/b"})
    assert any("dataset.image_size=8 keeps the training images on the host" in line for line in problems(experiment))


def test_padding_beside_random_crops_is_said():
    assert notes.shifted_crops(experiment_with(crop_padding=2)) == []
    assert notes.shifted_crops(experiment_with(name="a/b", image_size=8)) == []
    (line,) = notes.shifted_crops(experiment_with(name="a/b", image_size=8, crop_padding=2))
    assert line.startswith("dataset.crop_padding=2 pads the random crops")


def test_a_run_is_evaluated_on_the_images_of_a_list(folder, tmp_path, capsys):
    """Trained elsewhere, and then evaluated by the command on other images, in the list's order."""
    run, _ = train(folder, tmp_path / "run", epochs=1)
    shown = read_records(str(folder), Decoding(size=16)).test[0].records
    names = shown.file_names()
    chosen = [4, 0, 5, 2]
    lists = []
    for number, some in enumerate((chosen, chosen[::-1], chosen[:2] + chosen[:1:-1])):
        lists.append(tmp_path / str(number) / "list.txt")
        lists[-1].parent.mkdir()
        lists[-1].write_text("\n".join(names[i] for i in some) + "\n")

    def evaluated(path, *more, expected=0):
        arguments = [f"--workdir={run.folder}", "--checkpoint=final", "--attacks=clean,square3", *more]
        arguments += [f"--config.dataset.test_list={path}"] if path else []
        assert errors.run(evaluate.main, arguments) == expected
        return capsys.readouterr()

    evaluated(lists[0])
    found = run.evaluation()
    assert (found["num_examples"], found["aa_examples"]) == (4, 4)
    robust = Robustness.load(run.robustness("final", "square3"))
    assert robust.labels.tolist() == [shown.labels[i] for i in chosen]
    assert found["settings"]["test_list"].startswith("list.txt ")
    # As many images in another order are another evaluation, as are all images.
    for other in (lists[1], ""):
        told = evaluated(other, "--resume", expected=2).err
        assert "holds another evaluation" in told
        assert "test_list list.txt " in told
    assert "known" in evaluated(lists[0], "--resume").out
    evaluated(lists[0], "--overwrite", "--num_examples=2")
    assert run.evaluation()["num_examples"] == 2
    robust = Robustness.load(run.robustness("final", "square3"))
    assert robust.labels.tolist() == [shown.labels[i] for i in chosen[:2]]
    told = evaluated(tmp_path / "absent.txt", "--overwrite", expected=2).err
    assert "absent.txt' cannot be read: No such file or directory" in told
