import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import load

X = np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 2, 2, 1)
Y = np.array([0, 1, 2, 1, 0])


@pytest.fixture
def mine(tmp_path):
    np.savez(tmp_path / "mine.npz", x_train=X, y_train=Y, x_test=X[:3] + 100, y_test=Y[:3])
    return tmp_path / "mine.npz"


def test_zero_examples_means_all(mine):
    dataset = load("npz", data_dir=mine)
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (5, 3)


def test_the_first_examples_are_kept_and_classes_do_not_change(mine):
    dataset = load("npz", data_dir=mine, train_examples=2, test_examples=1)
    np.testing.assert_array_equal(dataset.train.images, X[:2], strict=True)
    assert dataset.train.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(dataset.test.images, X[:1] + 100, strict=True)
    assert dataset.num_classes == 3
    assert dataset.train.images.base is None  # A view would keep the whole data set in memory.


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("train_examples", 6, "train_examples=6 is more than the 5 of 'npz'; give at most 5, or 0 for all"),
        ("test_examples", 4, "test_examples=4 is more than the 3 of 'npz'; give at most 3, or 0 for all"),
        ("train_examples", -1, "train_examples=-1 must be at least 0"),
        ("test_examples", -1, "test_examples=-1 must be at least 0"),
    ],
)
def test_a_wrong_number_of_examples_is_named(mine, argument, value, message):
    with pytest.raises(InputError, match=message):
        load("npz", data_dir=mine, **{argument: value})


def test_an_unknown_name_gets_a_suggestion_or_the_list():
    with pytest.raises(InputError, match="dataset='fashion-mnist' is unknown; did you mean 'fashion_mnist'"):
        load("fashion-mnist")
    with pytest.raises(InputError, match=r"choose one of a path, cifar10, cifar100, circles, embedded, .*, tfds:NAME"):
        load("zzz")


def test_a_home_folder_is_expanded(mine, monkeypatch):
    monkeypatch.setenv("HOME", str(mine.parent))
    assert len(load("npz", data_dir="~/mine.npz").train.labels) == 5
