import io
import struct
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import load, tfds_source
from tests.data import formats

tfds = pytest.importorskip("tensorflow_datasets")
array_record_module = pytest.importorskip("array_record.python.array_record_module")
google_crc32c = pytest.importorskip("google_crc32c")
pil_image = pytest.importorskip("PIL.Image")

TRAIN = np.random.RandomState(0).randint(0, 256, (4, 6, 5, 3)).astype(np.uint8)
TEST = 255 - TRAIN[:2]


def png(image):
    buffer = io.BytesIO()
    pil_image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


class PiatToy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    LABEL = "label"

    def _info(self):
        features = {"image": tfds.features.Image(shape=(6, 5, 3)), self.LABEL: tfds.features.ClassLabel(names="abc")}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self.generate(images) for split, images in self.SPLITS.items()}

    SPLITS: ClassVar = {"train": TRAIN, "test": TEST}

    def generate(self, images):
        for index, image in enumerate(images):
            yield index, {"image": png(image), self.LABEL: "abc"[index % 3]}

    def _generate_examples(self):
        raise NotImplementedError


class PiatToyValidated(PiatToy):
    SPLITS: ClassVar = {"train": TRAIN, "validation": TEST}


class PiatToyThreefold(PiatToy):
    SPLITS: ClassVar = {"train": TRAIN, "validation": TRAIN[2:], "test": TEST}


class PiatToyTestOnly(PiatToy):
    SPLITS: ClassVar = {"test": TEST}


class PiatToyUnlabelled(PiatToy):
    LABEL = "species"


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch):
    monkeypatch.setattr(tfds_source, "has_tensorflow", lambda: False)


def prepare(builder_class, folder):
    builder = builder_class(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()


@pytest.mark.parametrize(
    ("name", "builder_class"),
    [("piat_toy", PiatToy), ("piat_toy_validated", PiatToyValidated), ("piat_toy_threefold", PiatToyThreefold)],
)
@pytest.mark.parametrize("by_environment", [False, True])
def test_prepared_data_is_read_exactly(tmp_path, monkeypatch, name, builder_class, by_environment):
    prepare(builder_class, tmp_path)
    if by_environment:
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    dataset = load(f"tfds:{name}", data_dir="" if by_environment else tmp_path)
    # TFDS shuffles when it prepares: compare as sets of (pixels, label).
    for split, images in ((dataset.train, TRAIN), (dataset.test, TEST)):
        assert split.images.shape == images.shape
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        ours = {(image.tobytes(), int(label)) for image, label in zip(split.images, split.labels)}
        assert ours == {(image.tobytes(), index % 3) for index, image in enumerate(images)}
    assert (dataset.name, dataset.num_classes, dataset.class_names) == (f"tfds:{name}", 3, ("a", "b", "c"))


def checksum(data):
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def to_tfrecord(folder):
    """What `folder` would be, had TFDS prepared it in its default format, which takes TensorFlow."""
    for path in folder.glob("*.array_record-*"):
        records = array_record_module.ArrayRecordReader(str(path)).read_all()
        frames = [part + checksum(part) for x in records for part in (struct.pack("<Q", len(x)), x)]
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(frames))
        path.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def test_a_folder_prepared_as_tfrecord_is_read_without_tensorflow(tmp_path):
    prepare(PiatToy, tmp_path)
    expected = load("tfds:piat_toy", data_dir=tmp_path)
    to_tfrecord(tmp_path / "piat_toy/1.0.0")
    dataset = load("tfds:piat_toy", data_dir=tmp_path)
    for ours, theirs in ((dataset.train, expected.train), (dataset.test, expected.test)):
        np.testing.assert_array_equal(ours.images, theirs.images, strict=True)
        np.testing.assert_array_equal(ours.labels, theirs.labels, strict=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "ends inside a record"),
        (lambda data: data + b"x", "ends inside a record"),
        (lambda data: b"\xff" * 12 + data, "ends inside a record"),
        (lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], "has a record with a wrong checksum"),
    ],
)
def test_a_damaged_tfrecord_file_is_named(tmp_path, damage, message):
    prepare(PiatToy, tmp_path)
    to_tfrecord(tmp_path / "piat_toy/1.0.0")
    path = next(tmp_path.glob("piat_toy/1.0.0/*-train.tfrecord-*"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"^{path} {message}; prepare the data set again"):
        load("tfds:piat_toy", data_dir=tmp_path)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_every_damage_to_the_records_is_seen(tmp_path, kind):
    prepare(PiatToy, tmp_path)
    if kind == "tfrecord":
        to_tfrecord(tmp_path / "piat_toy/1.0.0")
    path = next(tmp_path.glob(f"piat_toy/1.0.0/*-train.{kind}-*"))
    original, accepted = load("tfds:piat_toy", data_dir=tmp_path), []
    for _, damaged in formats.damaged_versions(path.read_bytes(), 40):
        path.write_bytes(damaged)
        try:
            accepted.append(load(str(tmp_path / "piat_toy")))
        except InputError as error:
            if str(tmp_path) not in str(error):
                raise
    for dataset in accepted:
        np.testing.assert_array_equal(dataset.train.images, original.train.images)
        np.testing.assert_array_equal(dataset.train.labels, original.train.labels)


def test_a_missing_tfrecord_file_is_named(tmp_path):
    prepare(PiatToy, tmp_path)
    to_tfrecord(tmp_path / "piat_toy/1.0.0")
    path = next(tmp_path.glob("piat_toy/1.0.0/*-test.tfrecord-*"))
    path.unlink()
    with pytest.raises(InputError, match=f"^{path} does not exist; prepare the data set again"):
        load("tfds:piat_toy", data_dir=tmp_path)


@pytest.mark.parametrize(("name", "shape", "classes"), [("cifar10", (32, 32, 3), 10), ("mnist", (28, 28, 1), 10)])
def test_public_names_work_on_mock_data(tmp_path, name, shape, classes):
    with tfds.testing.mock_data(num_examples=7):
        dataset = load(f"tfds:{name}", data_dir=tmp_path, train_examples=5)
    assert dataset.train.images.shape == (5, *shape)
    assert dataset.test.images.shape == (7, *shape)
    assert len(dataset.class_names) == classes


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(InputError, match="'tfds:fashion_mnst' is unknown; did you mean 'fashion_mnist'"):
        load("tfds:fashion_mnst")
    with pytest.raises(InputError, match=r"'tfds:zzz' is unknown; see https://www.tensorflow.org/datasets/catalog$"):
        load("tfds:zzz")


def test_what_is_not_prepared_says_how_to_prepare_it(tmp_path):
    with pytest.raises(InputError) as caught:
        load("tfds:cifar10", data_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"'tfds:cifar10' is not prepared as array_record in {tmp_path}/cifar10/3.0.2 (")
    assert "pip install tensorflow 'piat_jax[data]'" in message
    assert "t.builder('cifar10', data_dir='DIR', file_format='array_record').download_and_prepare()" in message
    assert "\n" not in message
    assert not (tmp_path / "cifar10").exists()  # Nothing was downloaded on the way.


def test_with_tensorflow_a_failed_preparation_is_an_input_error(tmp_path, monkeypatch):
    def fail(self):
        raise OSError("no network\nand more")

    monkeypatch.setattr(tfds_source, "has_tensorflow", lambda: True)
    monkeypatch.setattr(PiatToy, "download_and_prepare", fail)
    with pytest.raises(InputError, match=r"'tfds:piat_toy' is not prepared .*\(OSError: no network\); prepare it once"):
        load("tfds:piat_toy", data_dir=tmp_path)


def test_data_without_labels_is_refused(tmp_path):
    prepare(PiatToyUnlabelled, tmp_path)
    with pytest.raises(
        InputError, match=r"'tfds:piat_toy_unlabelled' has features image, species; give .*called image and label"
    ):
        load("tfds:piat_toy_unlabelled", data_dir=tmp_path)


def test_data_without_a_training_split_is_refused(tmp_path):
    prepare(PiatToyTestOnly, tmp_path)
    with pytest.raises(InputError, match=r"'tfds:piat_toy_test_only' has only test; give a data set with train"):
        load("tfds:piat_toy_test_only", data_dir=tmp_path)


def test_without_tensorflow_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"'tfds:cifar10' needs tensorflow_datasets; pip install 'piat_jax\[data\]'"):
        load("tfds:cifar10")


def test_importing_the_package_imports_no_optional_dependency():
    code = (
        "import sys, piat_jax.data as d; d.load('embedded');"
        "print([m for m in ('tensorflow_datasets', 'tensorflow', 'torch', 'ml_collections', 'scipy.io')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
