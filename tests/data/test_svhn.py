import numpy as np
import pytest
from scipy.io import savemat

from piat_jax.core.checks import InputError
from piat_jax.data import load


def pixels(count, start):
    """X as SVHN has it, `[32, 32, 3, N]`, with a different value at every neighbouring place."""
    height, width, channel, example = np.indices((32, 32, 3, count))
    return ((height * 5 + width * 3 + channel * 70 + example * 11 + start) % 256).astype(np.uint8)


def write(folder, **train):
    folder.mkdir(parents=True, exist_ok=True)
    train = {"X": pixels(4, 0), "y": np.array([[1], [10], [9], [10]], np.uint8)} | train
    savemat(folder / "train_32x32.mat", {key: value for key, value in train.items() if value is not None})
    savemat(folder / "test_32x32.mat", {"X": pixels(2, 9), "y": np.array([[5], [10]], np.uint8)})


@pytest.mark.parametrize("below", [".", "svhn", "SVHN"])
def test_pixels_layout_and_the_digit_zero(tmp_path, below):
    write(tmp_path / below)
    dataset = load("svhn", data_dir=tmp_path)
    assert dataset.train.images.shape == (4, 32, 32, 3)
    assert dataset.train.images.dtype == np.uint8
    for example, row, column, channel in ((0, 0, 0, 0), (3, 31, 2, 1), (1, 7, 30, 2)):
        expected = (row * 5 + column * 3 + channel * 70 + example * 11) % 256
        assert dataset.train.images[example, row, column, channel] == expected
    np.testing.assert_array_equal(dataset.test.images[1], pixels(2, 9)[..., 1], strict=True)
    np.testing.assert_array_equal(dataset.train.labels, np.array([1, 0, 9, 0], np.int32), strict=True)
    np.testing.assert_array_equal(dataset.test.labels, np.array([5, 0], np.int32), strict=True)


def test_one_missing_file_is_listed_with_the_fix(tmp_path):
    write(tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(InputError) as caught:
        load("svhn", data_dir=tmp_path)
    message = str(caught.value)
    assert f"tried {tmp_path}/test_32x32.mat, " in message
    assert f"{tmp_path}/svhn, {tmp_path}/SVHN, " in message
    assert f"{tmp_path}/train_32x32.mat" not in message
    assert "http://ufldl.stanford.edu/housenumbers: train_32x32.mat and test_32x32.mat, and give data_dir" in message


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"y": None}, "lacks the variables X and y"),
        ({"X": pixels(4, 0).transpose(3, 0, 1, 2)}, r"has X of shape \(4, 32, 32, 3\), not \(32, 32, 3, N\)"),
        ({"y": np.array([[0], [1], [2], [3]], np.uint8)}, r"has label 0, outside SVHN's \[1, 10\]"),
        ({"y": np.array([[11], [1], [2], [3]], np.uint8)}, r"has label 11, outside SVHN's \[1, 10\]"),
    ],
)
def test_other_content_is_refused(tmp_path, train, message):
    write(tmp_path, **train)
    with pytest.raises(InputError, match=f"^{tmp_path}/train_32x32.mat {message}"):
        load("svhn", data_dir=tmp_path)


def test_labels_of_another_number_than_images_are_refused(tmp_path):
    write(tmp_path, y=np.ones((3, 1), np.uint8))
    with pytest.raises(InputError, match="svhn train has 4 images but 3 labels"):
        load("svhn", data_dir=tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-500], lambda data: b"<html>404</html>" * 50])
def test_a_damaged_file_is_named(tmp_path, damage):
    write(tmp_path)
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"^{path} cannot be read as a MATLAB 5 file .*download it again"):
        load("svhn", data_dir=tmp_path)
