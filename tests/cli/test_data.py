import numpy as np
import pytest

from piat_jax.cli import data, errors
from piat_jax.data import load
from tests.data import formats

TRAIN, TEST = formats.examples(20, (32, 32, 3), 10, 0), formats.examples(10, (32, 32, 3), 10, 1)


def run(*arguments):
    return errors.run(data.main, [str(argument) for argument in arguments])


def test_inspect_counts_measures_and_finds_duplicates(tmp_path, capsys):
    images, labels = np.copy(TRAIN[0]), np.copy(TRAIN[1])
    images[1] = images[0]
    test = np.copy(TEST[0])
    test[3], test[4] = images[0], images[5]
    test_labels = np.copy(TEST[1])
    test_labels[3], test_labels[4] = labels[1], labels[5] + 1
    formats.cifar_binary(tmp_path, (images, labels), (test, test_labels))
    assert run("inspect", "cifar10", "--data_dir", tmp_path, "--sheet", tmp_path / "sheet.png") == 0
    out = capsys.readouterr().out
    assert f"cifar10 from {tmp_path}/cifar-10-batches-bin: 32x32x3, 10 classes" in out
    assert "train: 20 examples, 50,000 were published, 2 to 2 of a class; pixels 0 to 255" in out
    pixels = images.reshape(-1, 3) / 255
    mean, std = (", ".join(f"{x:.4f}" for x in values) for values in (pixels.mean(0), pixels.std(0)))
    assert f"mean ({mean}), std ({std}); 1 repeated" in out
    assert "test images that are training images: 2, with another label 1" in out
    assert "3  cat                2" in out
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_inspect_names_a_class_without_examples_and_draws_many_classes(tmp_path, capsys):
    train = formats.examples(60, (64, 64, 3), 200, 0)
    np.savez(tmp_path / "tiny.npz", x_train=train[0], y_train=train[1], x_test=train[0], y_test=train[1])
    assert run("inspect", tmp_path / "tiny.npz") == 2
    assert "class 1 has no training example" in capsys.readouterr().err
    formats.tiny_imagenet(tmp_path, formats.examples(200, (64, 64, 3), 200, 0), TEST_TINY)
    assert run("inspect", tmp_path, "--sheet", tmp_path / "sheet.png") == 0
    assert "199  thing 199" in capsys.readouterr().out


TEST_TINY = formats.examples(4, (64, 64, 3), 200, 1)


def test_prepare_writes_a_cache_that_loads_alike(tmp_path, capsys):
    formats.parquet(tmp_path / "hub", TRAIN, TEST)
    assert run("prepare", tmp_path / "hub", "--out", tmp_path / "cache") == 0
    assert f"hub: 20 + 10 examples in {tmp_path}/cache" in capsys.readouterr().out
    one, other = load(str(tmp_path / "cache")), load(str(tmp_path / "hub"))
    np.testing.assert_array_equal(one.train.images, other.train.images)
    assert one.class_names == formats.NAMES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect"], "give a command and a data set"),
        (["inspct", "cifar10"], "command='inspct' is unknown; did you mean 'inspect'?"),
        (["inspect", "cifar"], "dataset='cifar' is unknown; did you mean 'cifar10'"),
        (["prepare", "circles"], "prepare needs --out=FOLDER"),
        (["unpack", "x.npz"], "unpack needs --out=FILE.npz"),
        (["unpack", "x.npz", "--out=y.npz", "--sheet=x.png"], "sheet is a flag of inspect"),
        (["unpack", "none.npz", "--out=y.npz"], "none.npz does not exist"),
        (["inspect", "circles", "--out=x"], "out='x' is a flag of prepare"),
        (["inspect", "circles", "--sheet=x.xyz"], "sheet='x.xyz' cannot be written"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, message, capsys):
    assert run(*arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
