import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import cifar, load

# The header of a CIFAR batch as Python 2 wrote it: protocol 2, numpy 1's module names, byte strings as str (op U).
PYTHON2_BATCH = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05U\x01b"
    b"q\x06\x87q\x07Rq\x08(K\x01K\x01M\x00\x0c\x86q\tcnumpy\ndtype\nq\nU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03U\x01|"
    b"q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89T\x00\x0c\x00\x00%(pixels)tq\x10bU\x06labelsq\x11]q\x12"
    b"K\x07au."
)


def rows(start, count):
    """Rows of 3072 bytes in which every position differs from its neighbours in all three directions."""
    return ((np.arange(count)[:, None] * 31 + np.arange(3072)[None] * 7 + start) % 251).astype(np.uint8)


def batch(start, labels, key="labels"):
    return {"data": rows(start, len(labels)), key: labels, "filenames": ["x.png"] * len(labels)}


CIFAR10 = {f"data_batch_{n}": batch(n, [n, 9 - n]) for n in range(1, 6)} | {"test_batch": batch(60, [3])}
CIFAR100 = {
    "train": batch(1, [99, 0], "fine_labels") | {"coarse_labels": [1, 2]},
    "test": batch(5, [42], "fine_labels") | {"coarse_labels": [3]},
}
LAYOUTS = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz", CIFAR10),
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz", CIFAR100),
}


def to_bytes(content):
    """A pickle whose keys are bytes once read, as those of Python 2 are."""
    return pickle.dumps({key.encode(): value for key, value in content.items()}, protocol=2)


def write_folder(root, name):
    folder = root / LAYOUTS[name][0]
    folder.mkdir(parents=True)
    for file, content in LAYOUTS[name][2].items():
        (folder / file).write_bytes(to_bytes(content))
    return folder


def write_archive(root, name, leave_out=()):
    folder, archive, files = LAYOUTS[name]
    with tarfile.open(root / archive, "w:gz") as tar:
        # The official archive does not keep the batches in order either.
        for file, content in reversed(files.items()):
            if file not in leave_out:
                data = to_bytes(content)
                member = tarfile.TarInfo(f"{folder}/{file}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return root / archive


def expected_pixels(data):
    images = np.empty((len(data), 32, 32, 3), np.uint8)
    for example in range(len(data)):
        for channel in range(3):
            for row in range(32):
                images[example, row, :, channel] = data[example, channel * 1024 + row * 32 :][:32]
    return images


@pytest.mark.parametrize("archived", [False, True])
def test_cifar10_pixels_and_labels(tmp_path, archived):
    (write_archive if archived else write_folder)(tmp_path, "cifar10")
    dataset = load("cifar10", data_dir=tmp_path)
    data = np.concatenate([CIFAR10[f"data_batch_{n}"]["data"] for n in range(1, 6)])
    np.testing.assert_array_equal(dataset.train.images, expected_pixels(data), strict=True)
    np.testing.assert_array_equal(dataset.train.labels, np.array([1, 8, 2, 7, 3, 6, 4, 5, 5, 4], np.int32), strict=True)
    np.testing.assert_array_equal(dataset.test.images, expected_pixels(CIFAR10["test_batch"]["data"]), strict=True)
    assert dataset.test.labels.tolist() == [3]
    assert dataset.class_names[3] == "cat"


@pytest.mark.parametrize("archived", [False, True])
def test_cifar100_reads_the_fine_labels(tmp_path, archived):
    (write_archive if archived else write_folder)(tmp_path, "cifar100")
    dataset = load("cifar100", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.train.images, expected_pixels(CIFAR100["train"]["data"]), strict=True)
    assert dataset.train.labels.tolist() == [99, 0]
    assert dataset.test.labels.tolist() == [42]
    assert dataset.num_classes == 100
    assert (dataset.class_names[0], dataset.class_names[42], dataset.class_names[99]) == ("apple", "leopard", "worm")
    assert list(dataset.class_names) == sorted(set(dataset.class_names))


def test_the_folder_itself_and_the_usual_places_work(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data", "cifar10")
    assert load("cifar10", data_dir=folder).test.labels.tolist() == [3]
    monkeypatch.chdir(tmp_path)
    assert load("cifar10").test.labels.tolist() == [3]
    monkeypatch.chdir(tmp_path / "data")
    monkeypatch.setenv("PIAT_DATA_DIR", str(tmp_path / "data"))
    assert load("cifar10").test.labels.tolist() == [3]


def test_a_pickle_of_python_2_is_read():
    data = rows(9, 1)
    content = cifar.safe_unpickle("batch", PYTHON2_BATCH.replace(b"%(pixels)", data.tobytes()))
    np.testing.assert_array_equal(content[b"data"], data, strict=True)
    assert cifar.to_split("batch", content, b"labels").labels.tolist() == [7]


def test_missing_files_list_every_path_and_the_fix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIAT_DATA_DIR", str(tmp_path / "env"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    write_folder(tmp_path / "data", "cifar10").joinpath("data_batch_3").unlink()
    (tmp_path / "env").mkdir()
    with pytest.raises(InputError) as caught:
        load("cifar10")
    places = ["env/cifar-10-batches-py,", "env/cifar-10-binary.tar.gz,", "data/cifar-10-batches-py/data_batch_3,"]
    for place in [*places, "data/cifar-10-python.tar.gz,", "data/cifar10,", "tfds/cifar10;"]:
        assert place in str(caught.value)
    assert "data_batch_2" not in str(caught.value)
    assert "download https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, and give data_dir" in str(caught.value)


class Payload:
    """Unpickled by pickle.load, this creates a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_before_its_payload_runs(tmp_path):
    proof = tmp_path / "it-ran"
    data = pickle.dumps({b"data": Payload(proof), b"labels": [0]}, protocol=2)
    folder = write_folder(tmp_path, "cifar10")
    (folder / "data_batch_2").write_bytes(data)
    with pytest.raises(InputError, match=rf"^{folder}/data_batch_2 wants to run (posix|nt).mkdir.*may be malicious"):
        load("cifar10", data_dir=tmp_path)
    assert not proof.exists()
    # The same bytes do run in an ordinary unpickler: the payload is a live one.
    pickle.loads(data)
    assert proof.exists()


def test_a_malicious_pickle_in_an_archive_is_refused_and_nothing_is_extracted(tmp_path, monkeypatch):
    proof = tmp_path / "it-ran"
    evil = {"train": {"data": Payload(proof)}, "test": CIFAR100["test"]}
    monkeypatch.setitem(LAYOUTS, "cifar100", ("cifar-100-python", "cifar-100-python.tar.gz", evil))
    archive = write_archive(tmp_path, "cifar100")
    with pytest.raises(InputError, match=rf"^{archive}:cifar-100-python/train wants to run"):
        load("cifar100", data_dir=tmp_path)
    assert os.listdir(tmp_path) == [archive.name]


@pytest.mark.parametrize("name", ["builtins\neval", "os\nsystem", "numpy\nload", "numpy.core.multiarray\nfromfile"])
def test_every_other_global_is_named_in_the_refusal(name):
    with pytest.raises(InputError, match=f"^batch wants to run {name.replace(chr(10), '.')},"):
        cifar.safe_unpickle("batch", f"\x80\x02c{name}\n.".encode("latin-1"))


def test_a_dotted_name_cannot_reach_through_an_allowed_global():
    data = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(InputError, match=r"wants to run numpy.ndarray.tofile"):
        cifar.safe_unpickle("batch", data)


@pytest.mark.parametrize("cut", [1, 100, 3000])
def test_a_truncated_pickle_is_named(tmp_path, cut):
    folder = write_folder(tmp_path, "cifar10")
    whole = (folder / "test_batch").read_bytes()
    (folder / "test_batch").write_bytes(whole[:-cut])
    with pytest.raises(InputError, match=f"^{folder}/test_batch is a damaged pickle .*download it again"):
        load("cifar10", data_dir=tmp_path)


def test_a_truncated_archive_is_named(tmp_path):
    archive = write_archive(tmp_path, "cifar10")
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"^{archive} is not a complete .tar.gz"):
        load("cifar10", data_dir=tmp_path)


def test_something_else_called_tar_gz_is_named(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(InputError, match=r"cifar-100-python.tar.gz is not a complete .tar.gz"):
        load("cifar100", data_dir=tmp_path)


def test_an_archive_without_a_batch_is_named(tmp_path):
    archive = write_archive(tmp_path, "cifar10", leave_out=("data_batch_4",))
    with pytest.raises(InputError, match=f"^{archive} lacks cifar-10-batches-py/data_batch_4; download it again"):
        load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "batch lacks 'data' or 'labels'"),
        ({b"data": rows(0, 1)}, "batch lacks 'data' or 'labels'"),
        ({b"data": "text", b"labels": [0]}, r"batch: data is str, not uint8 \(N, 3072\)"),
        ({b"data": rows(0, 1)[:, 1:], b"labels": [0]}, r"batch: data is uint8 \(1, 3071\)"),
        ({b"data": rows(0, 1).astype(np.float32), b"labels": [0]}, r"batch: data is float32 \(1, 3072\)"),
        ({b"data": rows(0, 1), b"labels": ["cat"]}, "batch: labels are not integers"),
    ],
)
def test_other_content_is_refused(content, message):
    with pytest.raises(InputError, match=f"^{message}"):
        cifar.to_split("batch", content, b"labels")
