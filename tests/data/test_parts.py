import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import hold_out, load
from piat_jax.data.parts import check_like_the_whole
from piat_jax.data.types import Split

UP = np.repeat([0, 1, 2, 3], 25)
ONE_SWAPPED = np.r_[1, np.repeat([0], 24), 0, np.repeat([1, 2, 3], 25)[1:]]
GROUPED = {
    "ascending": UP,
    "descending": UP[::-1],
    "in another order": np.repeat([2, 0, 3, 1], 25),
    "but for two": ONE_SWAPPED,
    "two sorted chunks": np.r_[UP[::2], UP[1::2]],
}
MIXED = np.random.default_rng(0).permutation(UP)


def numbered(labels):
    """Examples whose only pixel is their number."""
    labels = np.asarray(labels, np.int32)
    return Split(np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1), labels)


def written(folder, labels):
    images, labels = numbered(labels)
    np.savez(folder / "x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return str(folder / "x.npz")


@pytest.mark.parametrize("part", ["train_examples", "test_examples"])
@pytest.mark.parametrize("order", GROUPED)
def test_a_part_of_what_lies_class_by_class_is_refused(tmp_path, order, part):
    path = written(tmp_path, GROUPED[order])
    with pytest.raises(InputError, match=rf"^{part}=25 has [12] of 4 classes: the examples are not mixed; shuffle"):
        load(path, **{part: 25})
    assert len(load(path, **{part: 100}).train.labels) == 100


def test_a_part_is_judged_by_its_classes(tmp_path):
    assert len(load(written(tmp_path, MIXED), train_examples=25).train.labels) == 25
    with pytest.raises(InputError, match="train_examples=90 has other shares of the classes"):
        load(written(tmp_path, UP[::-1]), train_examples=90)  # 10 of the last class, 25 or more of the others
    # The first of two sorted chunks is as good as any fair sample.
    first = load(written(tmp_path, GROUPED["two sorted chunks"]), train_examples=50).train.labels
    assert np.bincount(first).tolist() == [13, 12, 13, 12]


def test_what_is_mixed_is_hardly_ever_refused():
    rng = np.random.default_rng(0)
    for counts in ([25] * 4, [2] * 10, [50] * 100, [1000, 10, 1], [500, 500]):
        labels = np.repeat(np.arange(len(counts)), counts)
        for _ in range(100):
            order = rng.permutation(labels)
            count = int(rng.integers(1, len(order)))
            check_like_the_whole("n", order, order[:count])


@pytest.mark.parametrize("order", [*GROUPED, "mixed"])
def test_what_is_held_out_has_its_share_of_every_class(order):
    split = numbered(GROUPED.get(order, MIXED))
    train, held = hold_out(split, 20)
    assert np.bincount(train.labels).tolist() == [20] * 4
    assert np.bincount(held.labels).tolist() == [5] * 4
    # Whole examples, each in one of the two, in their order: of each class its last ones.
    for part in (train, held):
        numbers = part.images.ravel()
        np.testing.assert_array_equal(split.labels[numbers], part.labels)
        assert (np.diff(numbers.astype(int)) > 0).all()
    for label in range(4):
        assert held.images[held.labels == label].min() > train.images[train.labels == label].max()


def test_shares_of_classes_of_other_sizes():
    split = numbered(np.repeat([0, 1, 2], [60, 30, 1]))
    assert np.bincount(hold_out(split, 10)[1].labels).tolist() == [7, 3]
    assert np.bincount(hold_out(split, 88)[0].labels).tolist() == [1, 1, 1]
    with pytest.raises(InputError, match=r"validation_examples=89 leaves a class without .*; give at most 88"):
        hold_out(split, 89)
    with pytest.raises(InputError, match="validation_examples=91 leaves nothing of the 91 training examples"):
        hold_out(split, 91)


def test_the_last_ones_are_held_out_as_before_on_demand():
    train, held = hold_out(numbered(MIXED), 20, how="last")
    assert (train.images.max(), held.images.min()) == (79, 80)
    with pytest.raises(InputError, match="validation_examples=20 has 1 of 4 classes"):
        hold_out(numbered(UP[::-1]), 20, how="last")
    with pytest.raises(InputError, match="did you mean 'by class'"):
        hold_out(numbered(MIXED), 20, how="by clas")
