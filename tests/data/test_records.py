import itertools
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from piat_jax.core import scratch
from piat_jax.core.checks import InputError
from piat_jax.data import first, hold_out, load
from piat_jax.data.records import Decoding, RecordImages
from piat_jax.data.records import images as records_images
from piat_jax.data.records.examples import parse_example, write_example
from piat_jax.data.records.folders import FolderRecords
from piat_jax.data.records.images import decoded
from piat_jax.data.records.opening import read_records
from piat_jax.data.records.tar import TarRecords
from piat_jax.data.records.writing import KINDS, Encoded, write_split
from tests.data.encoded_sets import CLASSES, encode, examples, picture, write_set

DECODING = Decoding(size=16)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return {kind: write_set(tmp_path_factory.mktemp(kind) / "set", kind) for kind in KINDS}


def content(images):
    records = images.records
    return sorted(records[index] for index in range(len(records)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_bytes_and_labels_that_were_written(sets, kind):
    found = read_records(str(sets[kind]), DECODING)
    assert found.class_names == CLASSES
    for (images, labels), count, start in ((found.train, 30, 0), (found.test, 9, 1000)):
        assert images.shape == (count, 16, 16, 3)
        assert content(images) == sorted((each.data, each.label) for each in examples(count, start))
        assert [images.records[images.which[i]][1] for i in range(count)] == labels.tolist()
        assert len(set(map(images.name, range(count)))) == count


@pytest.mark.parametrize("kind", ["tar", "array_record"])
def test_a_pattern_chooses_files(sets, kind, tmp_path):
    for path in sets[kind].glob(f"*.{kind}"):
        split, _, number = path.stem.partition("-")
        (tmp_path / split).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / split / f"{number}.{kind}")
    (tmp_path / "other-train.parquet").touch()
    with pytest.raises(InputError, match="files of several formats"):
        read_records(str(tmp_path), DECODING)
    found = read_records(f"{tmp_path}/*/*.{kind}", DECODING)
    assert (len(found.train[0]), len(found.test[0])) == (30, 9)
    with pytest.raises(InputError, match=r"has only train; give train, and one of test"):
        read_records(f"{tmp_path}/train/*.{kind}", DECODING)
    shutil.copy(tmp_path / "train" / f"00000-of-00003.{kind}", tmp_path / f"part.{kind}")
    with pytest.raises(InputError, match=r"part.* does not show its split"):
        read_records(f"{tmp_path}/part.{kind}", DECODING)


def test_names_of_tfds_are_read(sets, tmp_path):
    for split, wanted in (("train", "train"), ("test", "validation")):
        for path in sets["tfrecord"].glob(f"{split}-*"):
            number = path.stem.removeprefix(f"{split}-")
            shutil.copy(path, tmp_path / f"imagenet2012-{wanted}.tfrecord-{number}")
    found = read_records(str(tmp_path), DECODING)
    assert (len(found.train[0]), len(found.test[0]), found.class_names) == (30, 9, ())


def test_hidden_test_labels_are_passed_over(tmp_path):
    for split, label in (("train", 0), ("train", 1), ("test", -1), ("validation", 1)):
        with_label = [Encoded(encode(picture(3)), label)] * 2
        if split == "train" and label:
            continue
        if split == "train":
            with_label = [Encoded(encode(picture(n)), n) for n in (0, 1)]
        write_split(tmp_path, "tfrecord", split, with_label, class_names=CLASSES)
    assert read_records(str(tmp_path), DECODING).test[1].tolist() == [1, 1]
    for path in tmp_path.glob("validation*"):
        path.unlink()
    with pytest.raises(InputError, match="only test images with hidden labels"):
        read_records(str(tmp_path), DECODING)


def test_a_part_of_a_set_stays_encoded(sets):
    data = load(str(sets["folders"]), decoding=DECODING, train_examples=12, test_examples=6)
    assert isinstance(data.train.images, RecordImages)
    assert data.train.images.shape[0] == 12
    train, held = hold_out(data.train, 3)
    assert isinstance(train.images, RecordImages)
    assert (len(train.images), len(held.images)) == (9, 3)
    names = {split.images.name(i) for split in (train, held) for i in range(len(split.images))}
    assert names == {data.train.images.name(i) for i in range(12)}
    for split in (train, held):
        for index, label in enumerate(split.labels):
            assert f"/{CLASSES[label]}/" in split.images.name(index)


def test_folders_that_cannot_be_used_are_named(tmp_path):
    write_split(tmp_path, "folders", "train", examples(6), class_names=CLASSES)
    with pytest.raises(InputError, match=r"has train/CLASS and no test/CLASS"):
        read_records(str(tmp_path), DECODING)
    (tmp_path / "val" / "fourth").mkdir(parents=True)
    (tmp_path / "val" / "odd").mkdir(parents=True)
    with pytest.raises(InputError, match=r"val/fourth is a class that the training images do not have"):
        read_records(str(tmp_path), DECODING)
    (tmp_path / "val" / "fourth").rmdir()
    (tmp_path / "val" / "third").mkdir()
    with pytest.raises(InputError, match=r"val/even holds no image; every class needs one"):
        read_records(str(tmp_path), DECODING)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no encoded images; give a folder with train/CLASS"):
        read_records(str(empty), DECODING)
    with pytest.raises(InputError, match="already holds train; give a new folder"):
        write_split(tmp_path, "folders", "train", [], class_names=CLASSES)


def test_folders_inside_a_class_belong_to_it(tmp_path):
    write_split(tmp_path, "folders", "train", examples(6), class_names=CLASSES)
    deep = tmp_path / "train" / "odd" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "x.JPEG").write_bytes(b"1")
    (deep / ".x.jpg").write_bytes(b"hidden")
    records = FolderRecords(tmp_path / "train")
    assert np.bincount(records.labels).tolist() == [2, 3, 2]
    assert b"1" in [records.read(index) for index in np.flatnonzero(records.labels == 1)]


def write_tar(path, members, mode="w"):
    import io

    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"1")], r"has a\.jpg without a\.cls; give each image a label"),
        ([("a.cls", b"1")], r"has a\.cls without an image; copy the file again"),
        ([("a.jpg", b"1"), ("a.cls", b"0"), ("a.png", b"2")], "has two images with the key 'a'; remove one"),
        ([("a.jpg", b"1"), ("a.cls", b"0"), ("a.cls", b"2")], r"has a\.cls twice; remove one"),
        ([("a.jpg", b"1"), ("a.cls", b"cat")], r"has b'cat' in a\.cls; give a class index as text"),
        ([("a.jpg", b"1"), ("a.cls", b"9999999")], "has label 9999999; give class indices from 0, without gaps"),
        ([], "holds no image; give tar files with KEY.jpg and KEY.cls"),
    ],
)
def test_tars_that_cannot_be_used_are_named(tmp_path, members, message):
    with pytest.raises(InputError, match=message):
        TarRecords([write_tar(tmp_path / "train.tar", members)])


def test_keys_in_folders_of_a_tar_are_told_apart(tmp_path):
    members = [("x/a.jpg", b"1"), ("x/a.cls", b"0"), ("y/a.b.jpg", b"2"), ("y/a.cls", b"1"), ("y/a.json", b"{}")]
    records = TarRecords([write_tar(tmp_path / "train.tar", members)])
    assert [records[index] for index in range(2)] == [(b"1", 0), (b"2", 1)]


def test_damaged_files_are_named(sets, tmp_path):
    whole = next(sets["tar"].glob("train-00000*")).read_bytes()
    cut = tmp_path / "train.tar"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"train\.tar (ends inside|cannot be read as tar)"):
        TarRecords([cut])
    with pytest.raises(InputError, match="give a complete, uncompressed file"):
        TarRecords([write_tar(tmp_path / "zipped.tar", [("a.jpg", b"1")], "w:gz")])
    for kind, message in (
        ("tfrecord", "wrong checksum"),
        ("parquet", "cannot be read as parquet"),
        ("array_record", "cannot be read as array_record"),
    ):
        folder = tmp_path / kind
        shutil.copytree(sets[kind], folder)
        path = next(folder.glob("train-00000*"))
        data = bytearray(path.read_bytes())
        if kind == "tfrecord":
            data[len(data) // 2] ^= 1
        else:
            data = data[: len(data) // 2]
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            read_records(str(folder), DECODING)


def test_what_changes_after_opening_is_named(sets, tmp_path):
    for kind in ("tar", "tfrecord", "folders"):
        folder = tmp_path / kind
        shutil.copytree(sets[kind], folder)
        images = read_records(str(folder), DECODING).test[0]
        for path in folder.rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:40])
        if kind == "tfrecord":
            whole = (sets[kind] / Path(images.records.paths[0]).name).read_bytes()
            place = images.records.places[images.which[0]]
            Path(images.records.paths[0]).write_bytes(whole[: place[1] + 9] + b"???" + whole[place[1] + 12 :])
            with pytest.raises(InputError, match="has a record with a wrong checksum"):
                images.read(0)
        elif kind == "folders":
            path = next((folder / "test").rglob("*.jpg"))
            path.unlink()
            index = next(i for i in range(9) if images.name(i) == str(path))
            with pytest.raises(InputError, match=r"jpg cannot be read: No such file"):
                images.read(index)
        else:
            with pytest.raises(InputError, match=r"bytes shorter than when it was opened"):
                images.read(0)


def test_examples_are_those_of_the_format():
    # Field 1, then entries of key and feature, as protoc writes them: {"label": [5], "image": [b"ab"]}.
    entries = [b"\x0a\x05label\x12\x05\x1a\x03\x0a\x01\x05", b"\x0a\x05image\x12\x06\x0a\x04\x0a\x02ab"]
    features = b"".join(b"\x0a" + bytes([len(entry)]) + entry for entry in entries)
    record = b"\x0a" + bytes([len(features)]) + features
    assert parse_example(record) == {"label": [5], "image": [b"ab"]}
    assert write_example({"label": 5, "image": b"ab"}) == record
    unpacked = b"\x0a\x0f\x0a\x0d\x0a\x05label\x12\x04\x1a\x02\x08\x07"
    assert parse_example(unpacked) == {"label": [7]}
    for number in (0, 127, 128, 2**40, -1, -(2**63)):
        assert parse_example(write_example({"label": number})) == {"label": [number]}
    big = write_example({"image": bytes(100_000), "label": 1})
    assert parse_example(big)["image"] == [bytes(100_000)]


@pytest.mark.parametrize("record", [b"\x0a\xff", b"\xff" * 30, b"text that is no protocol buffer", b"\x08\x01"])
def test_what_is_no_example_is_named(record):
    from piat_jax.data.records.examples import split

    with pytest.raises(InputError, match=r"x (is not a tf.train.Example|has features none)"):
        split("x", record)


def test_an_example_without_an_image_lists_what_it_has():
    from piat_jax.data.records.examples import split

    with pytest.raises(InputError, match=r"x has features label, png; give an encoded image as image or image/encoded"):
        split("x", write_example({"label": 1, "png": b"x"}))


@pytest.mark.parametrize("mapped", [False, True])
def test_images_to_evaluate_on_are_decoded_into_memory_or_into_a_file(sets, tmp_path, monkeypatch, mapped):
    folder = tmp_path / "set"
    shutil.copytree(sets["folders"], folder)
    whole = read_records(str(folder), DECODING).test[0]
    expected = whole[:]
    for place in (0, 4):
        Path(whole.name(place)).write_bytes(b"no image")
    if mapped:
        monkeypatch.setattr(scratch, "IN_MEMORY_BYTES", 3 * 16 * 16 * 3 - 1)
    images = read_records(str(folder), Decoding(size=16, on_bad="skip")).test[0]
    split, bad = decoded(images)
    assert isinstance(split.images, np.memmap) == mapped
    kept = [1, 2, 3, 5, 6, 7, 8]
    np.testing.assert_array_equal(split.images, expected[kept])
    np.testing.assert_array_equal(split.labels, whole.labels[kept])
    assert [line.partition(" ")[0] for line in bad] == [whole.name(0), whole.name(4)]
    # Of what is mapped many are not copied, and few are.
    assert isinstance(first("test_examples", 3, "x", split).images, np.memmap) == mapped
    assert not isinstance(first("test_examples", 2, "x", split, as_listed=True).images, np.memmap)
    with pytest.raises(InputError, match="cannot be decoded"):
        decoded(whole)


def test_memory_to_decode_does_not_grow_with_the_set(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(records_images, "AT_ONCE", 8)
    some, one = list(examples(20)), 64 * 64 * 3

    def peak(count):
        for name, number in (("train", 20), ("test", count)):
            repeated = itertools.islice(itertools.cycle(some), number)
            write_split(tmp_path / str(count), "tar", name, repeated, class_names=CLASSES)
        images = load(str(tmp_path / str(count)), decoding=Decoding(size=64)).test.images
        tracemalloc.start()
        split, _ = decoded(images)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert split.images[-1].any()
        return most / one

    small, large = peak(60), peak(600)
    assert large < small + 32
