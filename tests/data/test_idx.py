import gzip
import struct

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import DATASETS, idx, load
from piat_jax.data.dataset_info import Source

TRAIN_IMAGES = (np.arange(3 * 28 * 28) % 251).astype(np.uint8).reshape(3, 28, 28)
TEST_IMAGES = TRAIN_IMAGES[:2, ::-1]
LABELS = {"train": np.array([9, 0, 4], np.uint8), "t10k": np.array([1, 2], np.uint8)}


def idx_bytes(array):
    return struct.pack(f">{array.ndim + 1}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write(folder, *, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for part, images in (("train", TRAIN_IMAGES), ("t10k", TEST_IMAGES)):
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", LABELS[part])):
            data = idx_bytes(array)
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)


def assert_is_what_was_written(dataset):
    np.testing.assert_array_equal(dataset.train.images, TRAIN_IMAGES[..., None], strict=True)
    np.testing.assert_array_equal(dataset.train.labels, np.array([9, 0, 4], np.int32), strict=True)
    np.testing.assert_array_equal(dataset.test.images, TEST_IMAGES[..., None], strict=True)
    np.testing.assert_array_equal(dataset.test.labels, np.array([1, 2], np.int32), strict=True)
    assert dataset.num_classes == 10


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("fashion_mnist", "."),
        ("fashion_mnist", "fashion-mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("mnist", "."),
        ("mnist", "MNIST/raw"),
    ],
)
def test_pixels_and_labels_are_read_from_data_dir(tmp_path, name, below, zipped):
    write(tmp_path / below, zipped=zipped)
    dataset = load(name, data_dir=tmp_path)
    assert_is_what_was_written(dataset)
    assert dataset.class_names[9] == ("Ankle boot" if name == "fashion_mnist" else "9")


@pytest.mark.parametrize("below", ["env/fashion-mnist", "data/fashion-mnist", "data/FashionMNIST/raw"])
def test_the_usual_places_are_searched(tmp_path, monkeypatch, below):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIAT_DATA_DIR", str(tmp_path / "env"))
    write(tmp_path / below)
    assert_is_what_was_written(load("fashion_mnist"))


def test_the_environment_comes_before_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIAT_DATA_DIR", str(tmp_path / "env"))
    write(tmp_path / "data/fashion-mnist")
    write(tmp_path / "env/fashion-mnist")
    (tmp_path / "env/fashion-mnist/train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(TRAIN_IMAGES + 7)))
    assert load("fashion_mnist").train.images[0, 0, 0, 0] == 7


def test_mnist_is_not_mistaken_for_fashion_mnist_in_a_shared_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIAT_DATA_DIR", raising=False)
    write(tmp_path / "data")
    with pytest.raises(InputError, match="mnist was not found"):
        load("mnist")


def test_missing_files_list_every_path_and_the_fix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIAT_DATA_DIR", str(tmp_path / "env"))
    read, info = DATASETS["fashion_mnist"]
    elsewhere = Source(read, info._replace(packaged=tmp_path / "debian"))
    monkeypatch.setitem(DATASETS._entries, "fashion_mnist", elsewhere)
    write(tmp_path / "data/FashionMNIST/raw")
    (tmp_path / "data/FashionMNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError) as caught:
        load("fashion_mnist")
    message = str(caught.value)
    folders = ("/env/fashion-mnist", "/env/FashionMNIST/raw", "data/fashion-mnist", str(tmp_path / "debian"))
    for place in (*folders, "data/FashionMNIST/raw/t10k-labels-idx1-ubyte[.gz]"):
        assert f"{place}," in message or f"{place};" in message
    assert "`apt install dataset-fashion-mnist`, and give data_dir" in message


def test_a_given_data_dir_is_the_only_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data/fashion-mnist")
    with pytest.raises(InputError, match="elsewhere/FashionMNIST/raw; ") as caught:
        load("fashion_mnist", data_dir=tmp_path / "elsewhere")
    assert " data/" not in str(caught.value)
    assert "/usr/share" not in str(caught.value)


def test_of_an_incomplete_folder_only_the_missing_file_is_listed(tmp_path):
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError) as caught:
        load("mnist", data_dir=tmp_path)
    assert f"{tmp_path}/t10k-labels-idx1-ubyte[.gz]" in str(caught.value)
    assert f"{tmp_path}/train-images-idx3-ubyte[.gz]" not in str(caught.value)


WHOLE = gzip.compress(idx_bytes(TRAIN_IMAGES))
DAMAGED = WHOLE[:12] + bytes([WHOLE[12] ^ 0xFF, WHOLE[13] ^ 0xFF]) + WHOLE[14:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[:-9], "is a truncated gzip file; download it again"),
        (idx_bytes(TRAIN_IMAGES), "is not gzip .* drop .gz if it is already unpacked"),
        (gzip.compress(idx_bytes(LABELS["train"])), "starts with 0x00000801, not 0x00000803; give an idx3-ubyte file"),
        (
            gzip.compress(idx_bytes(TRAIN_IMAGES)[:-1]),
            r"says \[3, 28, 28\], 2352 bytes, but holds 2351; download it again",
        ),
        (gzip.compress(idx_bytes(TRAIN_IMAGES) + b"x"), r"says \[3, 28, 28\], 2352 bytes, but holds 2353"),
        (gzip.compress(idx_bytes(TRAIN_IMAGES)[:10]), "has 10 bytes, less than its header of 16"),
        (gzip.compress(struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1)), r"says .* but holds 0"),
        (b"", "starts with 0x, not 0x00000803"),
    ],
    ids=["truncated", "not gzip", "labels", "short", "long", "no header", "hostile header", "empty"],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, content, message):
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path} {message}"):
        load("mnist", data_dir=tmp_path)


def test_a_gzip_file_with_a_flipped_bit_is_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(DAMAGED)
    with pytest.raises(InputError, match=f"^{path} is .*gzip.*download it again"):
        load("mnist", data_dir=tmp_path)


def test_images_and_labels_of_different_downloads_are_refused(tmp_path):
    write(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(LABELS["t10k"])))
    with pytest.raises(InputError, match=f"train-images-idx3-ubyte.gz has 3 images but {labels} 2 labels"):
        load("mnist", data_dir=tmp_path)


def test_a_missing_file_given_directly_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nothing cannot be read: No such file"):
        idx.read_idx(tmp_path / "nothing", rank=3)
