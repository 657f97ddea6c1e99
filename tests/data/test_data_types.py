import dataclasses

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data.types import Dataset, Split


def make(train=None, test=None, num_classes=3, class_names=()):
    good = Split(np.zeros((4, 6, 5, 1), np.uint8), np.array([0, 1, 2, 0], np.int32))
    return Dataset("toy", train or good, test or good, num_classes, class_names)


def split(shape=(4, 6, 5, 1), labels=(0, 1, 2, 0), image_dtype=np.uint8, label_dtype=np.int32):
    return Split(np.zeros(shape, image_dtype), np.array(labels, label_dtype))


def test_a_good_data_set_passes_and_is_frozen():
    dataset = make(class_names=("a", "b", "c"))
    assert dataset.class_names == ("a", "b", "c")
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"  # type: ignore[misc]


def test_classes_without_names_are_called_by_their_number():
    assert make().class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (split(labels=(0, 1, 2)), "has 4 images but 3 labels"),
        (split(image_dtype=np.float32), "images have dtype float32; give uint8"),
        (split(label_dtype=np.int64), "labels have dtype int64; give int32"),
        (split(shape=(4, 6, 5)), r"images have shape \(4, 6, 5\); give \[examples"),
        (split(labels=[[0], [1], [2], [0]]), r"labels have shape \(4, 1\); give \[examples\]"),
        (split(labels=(0, 1, 3, 0)), r"has label 3; give labels in \[0, 3\)"),
        (split(labels=(0, -1, 2, 0)), r"has label -1; give labels in \[0, 3\)"),
        (split(shape=(0, 6, 5, 1), labels=()), "is empty"),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_bad_split_is_named(part, bad, message):
    with pytest.raises(InputError, match=f"^toy {part} .*{message}"):
        make(**{part: bad})


def test_splits_of_different_image_sizes_are_refused():
    with pytest.raises(InputError, match=r"training images are \(6, 5, 1\) and test images \(5, 6, 1\)"):
        make(test=split(shape=(4, 5, 6, 1)))


def test_class_names_must_be_as_many_as_classes():
    with pytest.raises(InputError, match="2 class_names for num_classes=3"):
        make(class_names=("a", "b"))
