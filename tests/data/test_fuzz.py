"""Every format, cut off and with flipped bits: an InputError or what was written; no crash, hang or nonsense."""

import faulthandler

import pytest

from piat_jax.core.checks import InputError
from piat_jax.data import load, open_dataset
from piat_jax.data.prepare import prepare
from tests.data import formats

TRIALS = 40
TRAIN, TEST = formats.examples(20, (32, 32, 3), 10, 0), formats.examples(10, (32, 32, 3), 10, 1)
GRAY = [formats.examples(20, (28, 28, 1), 10, 0), formats.examples(10, (28, 28, 1), 10, 1)]
TINY = [formats.examples(200, (64, 64, 3), 200, 0), formats.examples(6, (64, 64, 3), 200, 1)]


def cache(folder, train, test):
    formats.npy(folder / "arrays", train, test)
    prepare(open_dataset(str(folder / "arrays")), folder / "cache")


def jpeg(folder, train, test):
    formats.image_folder(folder, train, test, "jpeg")


# What is written, whose data it is, which file is damaged, and whether a checksum tells of every flipped bit. Without
# one, the pixels and labels that are read may be others; their number and shape may not.
CASES = {
    "cifar python": (formats.cifar_python, [TRAIN, TEST], "cifar-10-batches-py/data_batch_2", False),
    "cifar binary": (formats.cifar_binary, [TRAIN, TEST], "cifar-10-batches-bin/data_batch_2.bin", False),
    "cifar archive": (formats.cifar_archive, [TRAIN, TEST], "cifar-10-binary.tar.gz", True),
    "svhn": (formats.svhn, [TRAIN, TEST], "train_32x32.mat", True),
    "idx": (formats.idx, GRAY, "train-images-idx3-ubyte.gz", True),
    "npz": (formats.npz, [TRAIN, TEST], "train.npz", True),
    "npz compressed": (formats.npz_compressed, [TRAIN, TEST], "train.npz", True),
    "npy": (formats.npy, [TRAIN, TEST], "x_train.npy", False),
    "cache": (cache, [TRAIN, TEST], "cache/train_images.npy", True),
    "cache description": (cache, [TRAIN, TEST], "cache/dataset.json", False),
    "png": (formats.image_folder, [TRAIN, TEST], "train/0_left/000.png", True),
    "jpeg": (jpeg, [TRAIN, TEST], "train/0_left/000.jpeg", False),
    "annotations": (formats.tiny_imagenet, TINY, "tiny-imagenet-200/val/val_annotations.txt", False),
    "parquet": (formats.parquet, [TRAIN, TEST], "train-00000-of-00002.parquet", True),
}


def read(folder, path):
    dataset = load(str(folder / "cache" if path.startswith("cache/") else folder))
    splits = (dataset.train, dataset.test)
    return [(split.images.tobytes(), split.labels.tobytes(), split.images.shape) for split in splits]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("default")
def test_damage_is_seen(tmp_path, case):
    write, splits, name, checked = CASES[case]
    write(tmp_path, *splits)
    path = tmp_path / name
    original, accepted = read(tmp_path, name), []
    faulthandler.dump_traceback_later(60, exit=True)  # a hang would otherwise say nothing
    for cut, damaged in formats.damaged_versions(path.read_bytes(), TRIALS):
        path.write_bytes(damaged)
        try:
            accepted.append((cut, read(tmp_path, name)))
        except InputError as error:
            if str(tmp_path) not in str(error):
                raise
    faulthandler.cancel_dump_traceback_later()
    assert len(accepted) < TRIALS * 3 / 4
    for cut, found in accepted:
        assert [shapes for *_, shapes in found] == [shapes for *_, shapes in original]
        # Only what carries nothing may go: a time stamp, padding, a name, the last numbers of annotations.
        assert found == original or not (cut or checked)
