"""Common corruptions in both published layouts, small, and everything that may be wrong with them."""

import re

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data.corruptions import CORRUPTIONS, EXTRA, open_corruptions

SHAPE, CLASSES, COUNT = (4, 4, 3), 3, 6


def write_arrays(folder, names=CORRUPTIONS, shape=SHAPE, count=COUNT, classes=CLASSES):
    """The layout of CIFAR-10-C; the images of severity s are s everywhere, but for the first pixel: the example."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(count) % classes
    np.save(folder / "labels.npy", np.tile(labels, 5))
    for name in names:
        images = np.repeat(np.arange(1, 6, dtype=np.uint8), count)[:, None, None, None] * np.ones(shape, np.uint8)
        images[:, 0, 0, 0] = np.tile(np.arange(count), 5)
        np.save(folder / f"{name}.npy", images)
    return labels


def write_folders(folder, names=CORRUPTIONS, shape=SHAPE, each=2, classes=("n01", "n02", "n10"), inside=""):
    """The layout of ImageNet-C; images of severity s and class k are 40 s + k everywhere."""
    image = pytest.importorskip("PIL.Image")
    for name in names:
        for severity in range(1, 6):
            for number, label in enumerate(classes):
                place = folder / inside / name / str(severity) / label
                place.mkdir(parents=True)
                pixels = np.full(shape, 40 * severity + number, np.uint8)
                pixels = pixels[..., 0] if shape[2] == 1 else pixels
                for index in range(each):
                    image.fromarray(pixels).save(place / f"ILSVRC_{index}.JPEG", format="PNG")


def test_arrays(tmp_path):
    labels = write_arrays(tmp_path, [*CORRUPTIONS, "spatter"])
    found = open_corruptions(tmp_path, "cifar10", SHAPE, CLASSES)
    assert list(found.names) == [*CORRUPTIONS, "spatter"]
    for severity in (1, 5):
        images, of = found.split("fog", severity)
        assert images.shape == (COUNT, *SHAPE)
        np.testing.assert_array_equal(images[:, 1:], severity)
        np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(COUNT))
        np.testing.assert_array_equal(of, labels)
    images, of = found.split("fog", 2, 3)
    np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 1, 2])
    assert len(of) == 3
    with pytest.raises(InputError, match="num_examples=7 is more than the 6 of"):
        found.split("fog", 2, 7)


@pytest.mark.parametrize("inside", ["", "all"])
def test_folders(tmp_path, inside):
    write_folders(tmp_path, [*CORRUPTIONS, *EXTRA], inside=inside)
    found = open_corruptions(tmp_path, "tiny_imagenet", SHAPE, CLASSES)
    assert list(found.names) == [*CORRUPTIONS, *EXTRA]
    images, labels = found.split("snow", 4, 6)
    np.testing.assert_array_equal(images[:, 0, 0, 0], 160 + labels)
    assert sorted(labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert labels.tolist() != sorted(labels.tolist())  # not class by class


def fails(folder, name="cifar10", shape=SHAPE, classes=CLASSES):
    with pytest.raises(InputError) as error:
        open_corruptions(folder, name, shape, classes)
    return str(error.value)


def test_what_is_wrong_with_arrays(tmp_path):
    home = "CIFAR-10-C.tar from https://zenodo.org/records/2535967"
    assert "is not a folder; unpack " + home in fails(tmp_path / "absent")
    write_arrays(tmp_path)
    (tmp_path / "fog.npy").rename(tmp_path / "kept")
    assert fails(tmp_path) == f"{tmp_path} lacks fog.npy; unpack {home} there"
    assert "CIFAR-100-C.tar from https://zenodo.org/records/3555552" in fails(tmp_path, "cifar100")
    (tmp_path / "fog.npy").write_bytes((tmp_path / "kept").read_bytes()[:200])
    assert f"{tmp_path / 'fog.npy'} is not a whole .npy file" in fails(tmp_path)
    (tmp_path / "fog.npy").write_bytes((tmp_path / "kept").read_bytes())
    told = fails(tmp_path, shape=(8, 8, 3))
    assert "gaussian_noise.npy has uint8 of shape (30, 4, 4, 3), but cifar10 needs uint8 of shape (30, 8, 8, 3)" in told
    np.save(tmp_path / "snow.npy", np.zeros((30, *SHAPE), np.float32))
    assert f"{tmp_path / 'snow.npy'} has float32" in fails(tmp_path)
    np.save(tmp_path / "snow.npy", np.zeros((24, *SHAPE), np.uint8))
    assert f"{tmp_path / 'snow.npy'} has uint8 of shape (24, 4, 4, 3)" in fails(tmp_path)
    np.save(tmp_path / "snow.npy", np.array([None]), allow_pickle=True)  # a pickle is not read
    assert f"{tmp_path / 'snow.npy'} is not a whole .npy file" in fails(tmp_path)
    for labels in (np.zeros(7, int), np.zeros(30), np.zeros((30, 1), int), np.zeros(0, int)):
        np.save(tmp_path / "labels.npy", labels)
        assert "must have the labels of the test images 5 times" in fails(tmp_path)
    for labels in (np.arange(30) % 3 + 1, np.arange(30) % 4 - 1, np.repeat(np.arange(3), 10)):
        np.save(tmp_path / "labels.npy", labels)
        assert "must be those of 3 classes and the same 5 times" in fails(tmp_path)
    (tmp_path / "labels.npy").unlink()
    assert f"{tmp_path / 'labels.npy'} does not exist; unpack {home} there" in fails(tmp_path)


def test_what_is_wrong_with_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    told = fails(tmp_path / "empty", "")
    assert "lacks gaussian_noise, shot_noise" in told
    assert "ImageNet-C from https://zenodo.org/records/2235448" in told
    write_folders(tmp_path)
    home = "Tiny-ImageNet-C.tar from https://zenodo.org/records/2536630"
    assert "has shape (4, 4, 3), but tiny_imagenet has images of shape (8, 8, 3)" in fails(
        tmp_path, "tiny_imagenet", (8, 8, 3)
    )
    assert "has 3 class folders, which must be the same 4 everywhere" in fails(tmp_path, "tiny_imagenet", classes=4)
    (tmp_path / "fog" / "3" / "n02").rename(tmp_path / "fog" / "3" / "n03")
    assert re.search(r"fog/3 has 3 class folders, which must be the same 3", fails(tmp_path, "tiny_imagenet"))
    (tmp_path / "fog" / "3").rename(tmp_path / "fog" / "6")
    assert f"{tmp_path / 'fog' / '3'} does not exist; unpack {home} there" in fails(tmp_path, "tiny_imagenet")
    for label in ("n01", "n02", "n10"):
        (tmp_path / "fog" / "3" / label).mkdir(parents=True)
    assert f"{tmp_path / 'fog' / '3'} holds no image; unpack {home} again" in fails(tmp_path, "tiny_imagenet")
