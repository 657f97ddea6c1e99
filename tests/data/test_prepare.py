import json

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import load, open_dataset
from piat_jax.data import prepare as prepare_module
from piat_jax.data.prepare import prepare
from tests.data import formats

TRAIN, TEST = formats.examples(20, (32, 32, 3), 10, 0), formats.examples(10, (32, 32, 3), 10, 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "BLOCK_BYTES", 4 * 3072)
    formats.image_folder(tmp_path / "images", TRAIN, TEST)
    return tmp_path / "images"


def assert_same(one, other):
    for ours, theirs in ((one.train, other.train), (one.test, other.test)):
        np.testing.assert_array_equal(ours.images, theirs.images, strict=True)
        np.testing.assert_array_equal(ours.labels, theirs.labels, strict=True)
    assert (one.num_classes, one.class_names) == (other.num_classes, other.class_names)


class Stopped(Exception):
    pass


def stop_at(count):
    def on_block(done, total):
        if done == count:
            raise Stopped

    return on_block


@pytest.mark.parametrize("stopped", [4, 12, 20, 24, 30])
def test_stopped_anywhere_it_goes_on_and_the_cache_is_the_same(tmp_path, folder, monkeypatch, stopped):
    out = tmp_path / "cache"
    with pytest.raises(Stopped):
        prepare(open_dataset(str(folder)), out, on_block=stop_at(stopped))
    with pytest.raises(InputError, match="was not found"):
        load(str(out))
    for partial in out.glob("*.partial"):
        partial.write_bytes(partial.read_bytes() + b"half a block")
    done = []
    prepare(open_dataset(str(folder)), out, on_block=lambda count, total: done.append(count))
    assert min(done, default=31) > stopped  # nothing was written twice
    assert_same(load(str(out)), load(str(folder)))
    assert sorted(path.suffix for path in out.iterdir()) == [".json", *[".npy"] * 4]
    monkeypatch.setattr(prepare_module, "_write_images", None)
    prepare(open_dataset(str(folder)), out)  # there is nothing left to do


def test_a_cache_is_found_by_its_name_in_a_root(tmp_path, monkeypatch):
    formats.cifar_binary(tmp_path / "original", TRAIN, TEST)
    prepare(open_dataset("cifar10", data_dir=tmp_path / "original"), tmp_path / "data/cifar10")
    monkeypatch.chdir(tmp_path)
    dataset = load("cifar10")
    assert (dataset.name, dataset.where) == ("cifar10", "data/cifar10")
    assert isinstance(dataset.train.images, np.memmap)


@pytest.mark.parametrize("array", ["train_images", "test_labels"])
def test_a_changed_cache_is_refused(tmp_path, folder, array):
    path = prepare(open_dataset(str(folder)), tmp_path / "cache") / f"{array}.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"^{path} is not the original file: its sha256 differs"):
        load(str(tmp_path / "cache"))
    path.unlink()
    with pytest.raises(InputError, match=f"^{path} is missing"):
        load(str(tmp_path / "cache"))


def test_a_full_disk_is_named_and_the_same_command_goes_on(tmp_path, folder):
    resource = pytest.importorskip("resource")
    out = tmp_path / "cache"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        with pytest.raises(
            InputError, match=rf"^{out} cannot be written further: .*free some space, and repeat the command to resume"
        ):
            prepare(open_dataset(str(folder)), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads((out / "prepare.json").read_text())["done"] == {"train": 12, "test": 0}
    prepare(open_dataset(str(folder)), out)
    assert_same(load(str(out)), load(str(folder)))


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"has 1,000 bytes free, and 92,280 are needed; free some space"):
        prepare(open_dataset(str(folder)), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_other_files_and_other_data_are_left_alone(tmp_path, folder):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("text")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\); give a new or empty folder"):
        prepare(open_dataset(str(folder)), tmp_path / "mine")
    out = prepare(open_dataset(str(folder)), tmp_path / "cache")
    with pytest.raises(InputError, match=r"holds another data set \(images\)"):
        prepare(open_dataset("circles"), out)
    with pytest.raises(InputError, match="is a file; give a folder"):
        prepare(open_dataset("circles"), tmp_path / "mine/thesis.tex")


def test_what_another_data_set_left_half_done_is_not_continued(tmp_path, folder):
    out = tmp_path / "cache"
    with pytest.raises(Stopped):
        prepare(open_dataset(str(folder)), out, on_block=stop_at(8))
    circles = load("circles")
    prepare(circles, out)
    assert_same(load(str(out)), circles)
