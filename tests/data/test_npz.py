import zipfile

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import load, npz
from piat_jax.data.npz import read_examples

TRAIN = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
TEST = TRAIN[:2] + 50
KERAS = ("x_train", "y_train", "x_test", "y_test")
LONG = ("train_images", "train_labels", "test_images", "test_labels")


def arrays(keys=KERAS, **changes):
    values = (TRAIN, np.array([0, 2, 1]), TEST, np.array([1, 0]))
    return dict(zip(keys, values)) | changes


def write(path, content):
    np.savez_compressed(path, **content)
    return path


def assert_is_what_was_written(dataset):
    np.testing.assert_array_equal(dataset.train.images, TRAIN, strict=True)
    np.testing.assert_array_equal(dataset.train.labels, np.array([0, 2, 1], np.int32), strict=True)
    np.testing.assert_array_equal(dataset.test.images, TEST, strict=True)
    np.testing.assert_array_equal(dataset.test.labels, np.array([1, 0], np.int32), strict=True)
    assert dataset.num_classes == 3


@pytest.mark.parametrize("keys", [KERAS, LONG])
def test_one_file(tmp_path, keys):
    assert_is_what_was_written(load("npz", data_dir=write(tmp_path / "mine.npz", arrays(keys))))


def test_a_folder_with_a_pair_of_files(tmp_path):
    content = arrays()
    write(tmp_path / "train.npz", {"image": content["x_train"], "label": content["y_train"]})
    write(tmp_path / "test.npz", {"image": content["x_test"], "label": content["y_test"]})
    assert_is_what_was_written(load("npz", data_dir=tmp_path))


def test_channels_are_known_by_where_the_short_axis_is(tmp_path):
    for shape in ((4, 4, 2), (3, 8, 2), (1, 8, 1), (4, 9, 1), (8, 8, 5), (3, 3, 3), (2, 2, 2)):
        arrays = {"image": np.zeros((2, *shape), np.uint8), "label": np.arange(2)}
        np.savez(tmp_path / "x.npz", **arrays)
        assert read_examples(tmp_path / "x.npz").images.shape[1:] == shape
    for shape in ((1, 28, 28), (2, 16, 16), (3, 5, 5), (4, 32, 32), (3, 32, 48)):
        np.savez(tmp_path / "x.npz", image=np.zeros((2, *shape), np.uint8), label=np.arange(2))
        with pytest.raises(InputError, match="channels first; give"):
            read_examples(tmp_path / "x.npz")


def test_grayscale_images_get_a_channel_axis(tmp_path):
    path = write(tmp_path / "gray.npz", arrays(x_train=TRAIN[..., 0], x_test=TEST[..., 0]))
    dataset = load("npz", data_dir=path)
    np.testing.assert_array_equal(dataset.train.images, TRAIN[..., :1], strict=True)
    np.testing.assert_array_equal(dataset.test.images, TEST[..., :1], strict=True)


def test_a_column_of_labels_is_flattened(tmp_path):
    path = write(tmp_path / "column.npz", arrays(y_train=np.array([[0], [2], [1]], np.uint8)))
    assert_is_what_was_written(load("npz", data_dir=path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": TRAIN / 255}, r"x_train has dtype float64; give uint8 .*np.rint\(255 \* x\).astype\(np.uint8\)"),
        ({"y_train": np.array([0.0, 1.0, 2.0])}, "y_train has dtype float64; give integers"),
        (
            {"x_train": np.zeros((3, 3, 16, 16), np.uint8)},
            r"has shape \(3, 3, 16, 16\), channels first; give \[N, H, W, C\]",
        ),
        ({"y_test": np.array([-1, 2])}, r"y_test has label -1; give class indices in \[0, "),
        ({"y_train": np.array([0, 1, 2**32])}, r"y_train has label 4294967296; give class indices in \[0, "),
        ({"y_train": np.array([0, 1], np.int32)}, "npz train has 3 images but 2 labels"),
        ({"y_train": np.array([0, 2], np.int32)}, "npz train has 3 images but 2 labels"),
        ({"y_train": np.eye(3, dtype=np.int32)}, r"npz train labels have shape \(3, 3\)"),
        ({"x_train": TRAIN[:0], "y_train": np.zeros(0, int)}, "npz train is empty"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, changes, message):
    path = write(tmp_path / "mine.npz", arrays(**changes))
    with pytest.raises(InputError, match=message):
        load("npz", data_dir=path)


def test_the_advised_conversion_is_the_inverse_of_to_float(tmp_path):
    pixels = np.arange(256, dtype=np.uint8)
    floats = (pixels / 255).astype(np.float32)
    np.testing.assert_array_equal(np.rint(255 * floats).astype(np.uint8), pixels)


def test_other_keys_are_listed_with_the_right_ones(tmp_path):
    path = write(tmp_path / "mine.npz", {"image": TRAIN, "label": np.zeros(3, int)})
    with pytest.raises(InputError, match=f"^{path} has image, label; give x_train, y_train, .* or train_images, "):
        load("npz", data_dir=path)


def test_a_pair_with_a_wrong_key_is_named(tmp_path):
    write(tmp_path / "train.npz", {"image": TRAIN, "target": np.zeros(3, int)})
    write(tmp_path / "test.npz", {"image": TEST, "label": np.zeros(2, int)})
    with pytest.raises(InputError, match=f"^{tmp_path}/train.npz has no array 'label', only image, target"):
        load("npz", data_dir=tmp_path)


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(InputError, match=r"^data_dir is empty; give the path of an .npz file"):
        load("npz")
    with pytest.raises(InputError, match=f"^{tmp_path}/none.npz does not exist"):
        load("npz", data_dir=tmp_path / "none.npz")
    with pytest.raises(InputError, match=f"^a data set in {tmp_path} was not found; tried .*{tmp_path}/train.npz"):
        load("npz", data_dir=tmp_path)


class Payload:
    def __reduce__(self):
        return pytest.fail, ("the pickle was executed",)


def test_pickled_objects_are_refused_unread(tmp_path):
    path = write(tmp_path / "mine.npz", arrays(x_train=np.array([Payload()], object)))
    with pytest.raises(InputError, match=f"^{path} cannot be read as .npz without pickle .*write plain arrays"):
        load("npz", data_dir=path)


@pytest.mark.parametrize("content", [b"", b"not a zip file" * 9])
def test_another_kind_of_file_is_named(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path} cannot be read as .npz"):
        load("npz", data_dir=path)


def test_a_truncated_file_is_named(tmp_path):
    path = write(tmp_path / "mine.npz", arrays())
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=f"^{path} cannot be read as .npz"):
        load("npz", data_dir=path)


def test_a_member_that_is_no_array_is_named(tmp_path):
    path = write(tmp_path / "mine.npz", arrays(LONG))
    with zipfile.ZipFile(path, "a") as archive:
        for key in KERAS:
            archive.writestr(key, b"text")
    with pytest.raises(InputError, match=f"^{path} cannot be read as .npz"):
        load("npz", data_dir=path)


def test_a_single_array_is_named(tmp_path):
    np.save(tmp_path / "mine.npy", TRAIN)
    with pytest.raises(InputError, match=r"mine.npy is not a file with a complete data set; give a folder, an .npz"):
        load("npz", data_dir=tmp_path / "mine.npy")


GENERATED = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)


def write_generated(path, save=np.savez):
    save(path, image=GENERATED, label=np.arange(40) % 3)
    return path


def damage(path):
    """Change a pixel; the file's own checksum is left as it was."""
    content = bytearray(path.read_bytes())
    content[content.index(GENERATED.tobytes()) + 20_000] ^= 255
    path.write_bytes(content)


def test_generated_examples_are_mapped_and_large_ones_are_not_read_through(tmp_path, monkeypatch):
    path = write_generated(tmp_path / "x.npz")
    found = read_examples(path)
    assert isinstance(found.images, np.memmap)
    np.testing.assert_array_equal(found.images, GENERATED)
    damage(path)
    with pytest.raises(InputError, match=r"cannot be read as .npz without pickle .*Bad CRC"):
        read_examples(path)
    # What is larger is looked at where it is asked for, and no sooner.
    monkeypatch.setattr(npz, "VERIFIED_BYTES", 10_000)
    images, labels = read_examples(path)
    assert (images != GENERATED).sum() == 1
    assert labels.tolist() == (np.arange(40) % 3).tolist()
    # A data set of one's own is read through.
    whole = {"x_train": GENERATED, "y_train": labels, "x_test": GENERATED[:1], "y_test": labels[:1]}
    np.savez(path, **whole)
    damage(path)
    with pytest.raises(InputError, match="Bad CRC"):
        load("npz", data_dir=path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_does_not_fit_into_memory_unpacked_is_not_unpacked(tmp_path, monkeypatch, save):
    path = write_generated(tmp_path / "x.npz", save)
    monkeypatch.setattr(npz, "host_memory", lambda: 30_000)
    if save is np.savez:
        assert len(read_examples(path).labels) == 40
        return
    monkeypatch.setattr(npz, "read_member", lambda *arguments, **options: pytest.fail("unpacked"))
    message = f"{path} is compressed, and its 31.3 kB do not fit into the 30.0 kB of memory; .*: piat-data unpack "
    with pytest.raises(InputError, match=message + f"{path} --out={tmp_path}/x_mapped.npz"):
        read_examples(path)
