import importlib.resources
import subprocess
import sys
import zlib

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import build_subset, load
from piat_jax.data.embedded import FILE, SHA256, content_hash
from piat_jax.data.idx import DEBIAN_FASHION_MNIST

needs_debian_files = pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(), reason="needs the Debian package dataset-fashion-mnist"
)


def test_the_shipped_examples_are_the_recorded_ones():
    dataset = load("embedded")
    assert dataset.train.images.shape == (1024, 28, 28, 1)
    assert dataset.test.images.shape == (1000, 28, 28, 1)
    assert content_hash(dataset.train, dataset.test) == SHA256


def test_classes_are_balanced_and_mixed():
    dataset = load("embedded")
    assert sorted(np.bincount(dataset.train.labels)) == [102] * 6 + [103] * 4
    assert np.bincount(dataset.test.labels).tolist() == [100] * 10
    for split in (dataset.train, dataset.test):
        # 200 random draws leave a class below 8 or above 35 about once in ten thousand; sorted labels always do.
        counts = np.bincount(split.labels[:200], minlength=10)
        assert counts.min() >= 8
        assert counts.max() <= 35


def test_no_image_is_in_both_splits_or_twice():
    dataset = load("embedded")
    images = [image.tobytes() for split in (dataset.train, dataset.test) for image in split.images]
    assert len(set(images)) == 2024


def test_a_data_dir_is_refused():
    with pytest.raises(InputError, match="data_dir='somewhere' has no meaning for 'embedded'"):
        load("embedded", data_dir="somewhere")


def test_the_licence_is_shipped():
    text = importlib.resources.files("piat_jax.data").joinpath("FASHION_MNIST_LICENSE.txt").read_text()
    assert "Copyright (c) 2017 Zalando SE" in text
    assert "The above copyright notice and this permission notice shall be included" in text


@needs_debian_files
def test_every_image_keeps_its_official_label_and_split():
    official, shipped = load("fashion_mnist", data_dir=DEBIAN_FASHION_MNIST), load("embedded")
    for whole, part in ((official.train, shipped.train), (official.test, shipped.test)):
        known = {(image.tobytes(), int(label)) for image, label in zip(whole.images, whole.labels)}
        assert all((image.tobytes(), int(label)) in known for image, label in zip(part.images, part.labels))


@needs_debian_files
@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="zlib-ng compresses to other bytes")
def test_the_script_reproduces_the_shipped_file_bit_for_bit(tmp_path):
    out = tmp_path / "out.npz"
    command = [sys.executable, "-m", "piat_jax.data.build_subset", str(DEBIAN_FASHION_MNIST), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == SHA256
    assert out.read_bytes() == importlib.resources.files("piat_jax.data").joinpath(FILE).read_bytes()


def test_the_script_says_what_is_wrong_and_exits_with_2(tmp_path, capsys):
    assert build_subset.main([str(tmp_path)]) == 2
    assert "usage" in capsys.readouterr().err
    assert build_subset.main([str(tmp_path), str(tmp_path / "out.npz")]) == 2
    assert f"tried {tmp_path}/train-images-idx3-ubyte[.gz]" in capsys.readouterr().err
