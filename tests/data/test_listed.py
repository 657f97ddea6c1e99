"""Test images that a list names, in every form of encoded images."""

import re

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import first, load
from piat_jax.data.records import Decoding
from piat_jax.data.records.listed import read_list
from piat_jax.data.records.opening import read_records
from piat_jax.data.records.writing import KINDS, Encoded, write_split
from tests.data.encoded_sets import encode, examples, picture

WNIDS = ("n00000001", "n00000002", "n00000003")
DECODING = Decoding(size=16)
TEST = list(examples(9, 1000, named="val_"))
NAMES = [f"{WNIDS[each.label]}/{each.name}{each.suffix}" for each in TEST]
ORDER = [7, 0, 3, 8, 2]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp(kind) / "set"
        for split, some in (("train", examples(6)), ("test", TEST)):
            write_split(found[kind], kind, split, some, class_names=WNIDS, per_shard=4)
    return found


def write_list(folder, names):
    path = folder / "list.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_are_those_of_the_list_in_its_order(sets, kind, tmp_path):
    # Other endings and folders do not matter where there are no class folders.
    other = NAMES if kind == "folders" else [f"val/{name.rpartition('.')[0]}.JPEG" for name in NAMES]
    path = write_list(tmp_path, ["# those of a paper", "", *(f" {other[i]} " for i in ORDER)])
    images, labels = read_records(str(sets[kind]), DECODING, path).test
    assert [images.read(place) for place in range(5)] == [TEST[i].data for i in ORDER]
    assert labels.tolist() == [TEST[i].label for i in ORDER]
    data = load(str(sets[kind]), decoding=DECODING, test_list=path, test_examples=2)
    assert len(data.train.labels) == 6
    np.testing.assert_array_equal(data.test.images[:], images[:2])
    assert data.test.labels.tolist() == labels[:2].tolist()


def test_the_first_of_a_list_need_not_be_of_all_classes(tmp_path):
    """Where the same order is not a list's, it is refused."""
    some = [
        Encoded(encode(picture(1)), label, ".jpg", f"{label}_{number}") for label in range(3) for number in range(20)
    ]
    for split in ("train", "test"):
        write_split(tmp_path, "tar", split, some, class_names=WNIDS)
    path = write_list(tmp_path, [f"{WNIDS[each.label]}/{each.name}.jpg" for each in some])
    test = load(str(tmp_path), decoding=DECODING, test_list=path, test_examples=9).test
    assert test.labels.tolist() == [0] * 9
    whole = load(str(tmp_path), decoding=DECODING, test_list=path).test
    with pytest.raises(InputError, match="test_examples=9 has 1 of 3 classes"):
        first("test_examples", 9, "x", whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [*NAMES, *(f"{WNIDS[0]}/other_{i}.jpg" for i in range(5))],
            r"names what .* does not have: n00000001/other_0.jpg, .*other_2.jpg and 2 more \(5 in all\); give the list",
        ),
        ([*NAMES, *NAMES[3:5]], r"list.txt' names twice .* \(2 in all\)$"),
        (["# nothing"], "lists no image; give one CLASS/FILE per line"),
        ([NAMES[0], "val_1001.jpg"], "has 'val_1001.jpg' in line 2; give CLASS/FILE"),
    ],
)
def test_lists_that_cannot_be_used_are_named(sets, kind, names, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_records(str(sets[kind]), DECODING, write_list(tmp_path, names))


@pytest.mark.parametrize("kind", KINDS)
def test_another_class_is_named(sets, kind, tmp_path):
    label, name = NAMES[0].split("/")
    other = next(each for each in WNIDS if each != label)
    path = write_list(tmp_path, [f"{other}/{name}", NAMES[1]])
    said = (
        "does not have" if kind == "folders" else rf"names other classes .*: {other}/{name} is of {label} \(1 in all\)"
    )
    with pytest.raises(InputError, match=said):
        read_records(str(sets[kind]), DECODING, path)


def test_classes_count_by_their_wnids_alone(tmp_path):
    """Where the files have words for classes, the list's wnids say nothing about them."""
    for split, some in (("train", examples(6)), ("test", TEST)):
        write_split(tmp_path, "tar", split, some, class_names=("tench", "goldfish", "shark"))
    assert len(read_records(str(tmp_path), DECODING, write_list(tmp_path, NAMES)).test[1]) == 9


def test_the_hubs_names_end_with_their_class(tmp_path):
    hub = [each._replace(name=f"{each.name}_{WNIDS[each.label]}") for each in TEST]
    for split, some in (("train", examples(6)), ("test", hub)):
        write_split(tmp_path, "parquet", split, some, class_names=("tench", "goldfish", "shark"))
    images, _ = read_records(str(tmp_path), DECODING, write_list(tmp_path, [NAMES[i] for i in ORDER])).test
    assert [images.read(place) for place in range(5)] == [TEST[i].data for i in ORDER]


def test_a_column_with_names_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for split, some in (("train", list(examples(6))), ("test", TEST)):
        write_split(tmp_path, "parquet", split, (each._replace(name="") for each in some), class_names=WNIDS)
        path = next(tmp_path.glob(f"{split}*.parquet"))
        table = pyarrow.parquet.read_table(path)
        if split == "test":
            with pytest.raises(InputError, match=r"parquet has no file names; give image.path, or a column file_name"):
                read_records(str(tmp_path), DECODING, write_list(tmp_path, NAMES))
            named = pyarrow.array([f"{each.name}.JPEG" for each in TEST])
            pyarrow.parquet.write_table(table.append_column("file_name", named), path)
    images, _ = read_records(str(tmp_path), DECODING, write_list(tmp_path, [NAMES[i] for i in ORDER])).test
    assert [images.read(place) for place in range(5)] == [TEST[i].data for i in ORDER]


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_examples_without_names_say_so(kind, tmp_path):
    for split, count in (("train", 6), ("test", 3)):
        write_split(tmp_path, kind, split, examples(count), class_names=WNIDS)
    with pytest.raises(InputError, match="has no file names; give them as file_name or image/filename"):
        read_records(str(tmp_path), DECODING, write_list(tmp_path, NAMES))


def test_two_images_of_one_name_are_named(tmp_path):
    write_split(tmp_path, "tar", "train", examples(6), class_names=WNIDS)
    same = [Encoded(encode(picture(1)), 0, ".jpg", name) for name in ("a/x", "b/x", "a/y")]
    write_split(tmp_path, "tar", "test", same, class_names=WNIDS)
    with pytest.raises(InputError, match=r"has names that match several images of .*: n00000001/x.jpg \(1 in all\)"):
        read_records(str(tmp_path), DECODING, write_list(tmp_path, [f"{WNIDS[0]}/x.jpg"]))
    assert len(read_records(str(tmp_path), DECODING, write_list(tmp_path, [f"{WNIDS[0]}/y.jpg"])).test[1]) == 1


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        InputError, match=re.escape("absent.txt' cannot be read: No such file or directory; give a text")
    ):
        read_list(tmp_path / "absent.txt")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read: it is not text"):
        read_list(tmp_path / "x.txt")


def test_images_of_one_size_have_no_list():
    with pytest.raises(InputError, match="test_list='x' is for encoded images; give decoding"):
        load("embedded", test_list="x")
