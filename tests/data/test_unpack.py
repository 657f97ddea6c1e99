import collections
import shutil

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data.npz import read_arrays, read_examples
from piat_jax.data.unpack import unpack

RNG = np.random.default_rng(0)
ARRAYS = {"image": RNG.integers(0, 256, (9, 8, 8, 3), np.uint8), "label": RNG.integers(0, 3, 9), "other": np.float64(2)}


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "packed.npz"
    np.savez_compressed(path, **ARRAYS)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_it_holds_the_same_and_is_mapped(tmp_path, save):
    path, done = tmp_path / "packed.npz", []
    save(path, **ARRAYS)
    out = unpack(path, tmp_path / "mapped.npz", on_block=lambda *given: done.append(given))
    arrays = read_arrays(out)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    with np.load(out) as read:
        np.testing.assert_array_equal(read["image"], ARRAYS["image"])
    assert isinstance(read_examples(out).images, np.memmap)
    assert done[-1][0] == done[-1][1] == sum(128 + array.nbytes for array in ARRAYS.values())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mapped.npz", "packed.npz"]


def test_what_is_damaged_leaves_nothing(tmp_path, packed):
    content = bytearray(packed.read_bytes())
    content[200] ^= 255
    packed.write_bytes(content)
    with pytest.raises(InputError, match=f"{packed} cannot be read as .npz .*; copy it again"):
        unpack(packed, tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == [packed]


def test_what_cannot_be_written_is_named(tmp_path, packed, monkeypatch):
    (tmp_path / "text.npz").write_text("no zip")
    for source, out, message in (
        (packed, packed, "packed.npz' already exists; give a new file"),
        (tmp_path / "none.npz", tmp_path / "out.npz", "none.npz does not exist"),
        (tmp_path / "text.npz", tmp_path / "out.npz", "text.npz cannot be read as .npz"),
        (packed, tmp_path / "no" / "out.npz", "is in a missing folder"),
    ):
        with pytest.raises(InputError, match=message):
            unpack(source, out)
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1000))
    with pytest.raises(InputError, match=r"out.npz' needs 2.2 kB, and 1.0 kB are free; free some space"):
        unpack(packed, tmp_path / "out.npz")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["packed.npz", "text.npz"]
