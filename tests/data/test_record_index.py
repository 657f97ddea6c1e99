"""What reading all records has found out is kept, and never believed of other files or a damaged one."""

import os
import subprocess
import sys

import numpy as np
import pytest

from piat_jax.data import search_paths
from piat_jax.data.records import Decoding, examples, index
from piat_jax.data.records.index import Index, cached_index
from piat_jax.data.records.opening import read_records
from piat_jax.data.records.writing import write_split
from piat_jax.data.search_paths import cache_folder
from tests.data.encoded_sets import CLASSES, write_set
from tests.data.encoded_sets import examples as pictures

KINDS = ("array_record", "tfrecord")
DECODING = Decoding(size=16)


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Where it is kept."""
    monkeypatch.setenv("PIAT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / index.FOLDER


@pytest.fixture
def reads(monkeypatch):
    """The records that are looked into."""
    seen = []
    monkeypatch.setattr(
        examples, "split", lambda name, record, real=examples.split: (seen.append(name), real(name, record))[1]
    )
    return seen


def opened(folder):
    found = read_records(str(folder), DECODING)
    return [
        (images.read(place), label)
        for images, labels in (found.train, found.test)
        for place, label in enumerate(labels)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_opening_twice_reads_once(kind, tmp_path, kept, reads, monkeypatch):
    compared = []  # as files of equal size are, byte for byte
    monkeypatch.setattr(examples, "check_different", compared.append)
    folder = write_set(tmp_path / "set", kind, train=14, test=5)
    first = read_records(str(folder), DECODING)
    assert len(reads) == 19
    assert len(list(kept.iterdir())) == 2  # of two splits
    reads.clear()
    again = read_records(str(folder), DECODING)
    assert reads == []
    assert len(compared) == 2
    for before, after in ((first.train, again.train), (first.test, again.test)):
        np.testing.assert_array_equal(before[1], after[1])
        assert [before[0].read(i) for i in range(len(before[1]))] == [after[0].read(i) for i in range(len(after[1]))]


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_under_the_same_names_are_read(kind, tmp_path, kept, reads):
    folder = write_set(tmp_path / "set", kind, train=14, test=5)
    opened(folder)
    reads.clear()
    path = next(folder.glob("train-00000*"))
    time = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(time, time))
    before = opened(folder)
    assert len(reads) == 14 + 19  # those of the split, and what `opened` reads
    for path in folder.glob("test*"):
        path.unlink()
    write_split(folder, kind, "test", pictures(4, 50), class_names=CLASSES, per_shard=12)
    after = opened(folder)
    assert (len(before), len(after)) == (19, 18)
    assert [pair[0] for pair in after[:14]] == [pair[0] for pair in before[:14]]
    assert sorted(pair[0] for pair in after[14:]) == sorted(each.data for each in pictures(4, 50))
    assert len(list(kept.iterdir())) == 2  # in the place of those before


@pytest.mark.parametrize("how", ["cut", "another byte", "empty", "no zip", "other arrays", "another length"])
def test_what_is_damaged_is_made_anew(how, tmp_path, kept, reads):
    folder = write_set(tmp_path / "set", "tfrecord", train=14, test=5)
    expected = opened(folder)
    for path in kept.iterdir():
        data = bytearray(path.read_bytes())
        with np.load(path) as stored:
            arrays = dict(stored)
        if how == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif how == "another byte":
            at = data.index(arrays["places"].tobytes())
            data[at] ^= 1
            path.write_bytes(data)
        elif how == "other arrays":
            np.savez(path, **{**arrays, "labels": arrays["labels"].astype(float)})
        elif how == "another length":
            np.savez(path, **{**arrays, "labels": arrays["labels"][1:]})
        else:
            path.write_bytes(b"" if how == "empty" else b"text")
    reads.clear()
    assert opened(folder) == expected
    assert len(reads) == 19 + 19
    reads.clear()
    assert opened(folder) == expected  # it is whole again
    assert len(reads) == 19


def test_where_nothing_can_be_kept_nothing_is(tmp_path, kept, reads):
    kept.parent.write_text("a file where the folder would be")
    folder = write_set(tmp_path / "set", "array_record", train=14, test=5)
    assert opened(folder) == opened(folder)
    assert len(reads) == 2 * (19 + 19)


def test_files_that_change_meanwhile_are_not_kept(tmp_path, kept):
    path = tmp_path / "x"
    path.write_bytes(b"1")

    def read():
        path.write_bytes(b"12")
        return Index(np.zeros(1, np.int64), np.array([b""]), np.zeros((0, 3), np.int64))

    cached_index("x", [str(path)], read)
    assert not kept.exists()


OPENS = """
import sys
from piat_jax.data.records import Decoding
from piat_jax.data.records.opening import read_records
sys.stdin.readline()
print(read_records(sys.argv[1], Decoding(size=16)).train[1].tolist())
"""


def test_several_processes_open_at_once(tmp_path, kept):
    folder = write_set(tmp_path / "set", "tfrecord", train=14, test=5)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert said[0] == said[1] == said[2] != ""
    assert len(list(kept.glob("*.npz"))) == len(list(kept.iterdir())) == 2
    assert str(read_records(str(folder), DECODING).train[1].tolist()) == said[0].strip()


def test_where_it_is_kept(monkeypatch):
    assert cache_folder().name == "cache"
    monkeypatch.delenv("PIAT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder().as_posix() == "/somewhere/piat_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(search_paths, "expanded", lambda path: search_paths.Path(str(path).replace("~", "/home/x")))
    assert cache_folder().as_posix() == "/home/x/.cache/piat_jax"
