import functools
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from piat_jax.core.checks import InputError
from piat_jax.data import load
from piat_jax.data.augment import check_augmentation
from piat_jax.data.dataset_info import KNOWN
from piat_jax.data.encoded import decode
from piat_jax.data.types import Split
from tests.data import formats

CIFAR = [formats.examples(20, (32, 32, 3), 10, 0), formats.examples(10, (32, 32, 3), 10, 1)]
GRAY = [formats.examples(20, (28, 28, 1), 10, 0), formats.examples(10, (28, 28, 1), 10, 1)]
HUNDRED = [(CIFAR[0][0], CIFAR[0][1] * 11), (CIFAR[1][0], CIFAR[1][1] * 11)]
TINY = [formats.examples(200, (64, 64, 3), 200, 0), formats.examples(6, (64, 64, 3), 200, 1)]
LETTERS = functools.partial(formats.parquet, image="image", label="fine_label", shards=1)
LAYOUTS = {
    "cifar-10-batches-py": ("cifar10", formats.cifar_python, CIFAR),
    "cifar-10-batches-bin": ("cifar10", formats.cifar_binary, CIFAR),
    "cifar-10-binary.tar.gz": ("cifar10", formats.cifar_archive, CIFAR),
    "cifar-100-binary": ("cifar100", formats.cifar100_binary, HUNDRED),
    "svhn": ("svhn", formats.svhn, CIFAR),
    "idx": ("mnist", formats.idx, GRAY),
    "npz": ("cifar10", formats.npz, CIFAR),
    "npz compressed": ("cifar10", formats.npz_compressed, CIFAR),
    "npy": ("fashion_mnist", formats.npy, GRAY),
    "image folder": ("svhn", formats.image_folder, CIFAR),
    "tiny-imagenet-200": ("tiny_imagenet", formats.tiny_imagenet, TINY),
    "parquet": ("cifar10", formats.parquet, CIFAR),
    "parquet, fine labels": ("svhn", LETTERS, CIFAR),
}


def as_set(images, labels):
    return sorted((np.asarray(image).tobytes(), int(label)) for image, label in zip(images, labels))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("by_path", [False, True], ids=["by name", "by path"])
def test_every_format_is_read_exactly_by_name_and_by_path(tmp_path, layout, by_path):
    name, write, (train, test) = LAYOUTS[layout]
    write(tmp_path, train, test)
    dataset = load(str(tmp_path)) if by_path else load(name, data_dir=tmp_path)
    # Files of single images come sorted by class and are shuffled: compare as sets of (pixels, label).
    assert as_set(*dataset.train) == as_set(*train)
    assert as_set(*dataset.test) == as_set(*test)
    assert dataset.train.images.dtype == np.uint8
    if not by_path:
        assert dataset.name == name
        assert dataset.num_classes == KNOWN[name].classes


@pytest.mark.parametrize("layout", ["image folder", "tiny-imagenet-200", "parquet"])
def test_what_is_sorted_by_class_comes_in_a_random_order_that_stays(tmp_path, layout):
    name, write, (train, test) = LAYOUTS[layout]
    write(tmp_path, *(Split(x[np.argsort(y)], np.sort(y)) for x, y in (train, test)))
    labels = load(name, data_dir=tmp_path).train.labels
    assert (np.diff(labels) < 0).sum() > len(labels) / 4
    np.testing.assert_array_equal(load(name, data_dir=tmp_path).train.labels, labels)
    assert len(load(name, data_dir=tmp_path, train_examples=7).train.images) == 7


def test_names_of_classes_come_from_the_files(tmp_path):
    formats.tiny_imagenet(tmp_path / "tiny", *TINY)
    formats.parquet(tmp_path / "parquet", *CIFAR)
    formats.image_folder(tmp_path / "folder", *CIFAR)
    assert load("tiny_imagenet", data_dir=tmp_path / "tiny").class_names[:2] == ("thing 0", "thing 1")
    assert load(str(tmp_path / "parquet")).class_names == formats.NAMES
    assert load(str(tmp_path / "folder")).class_names[:2] == ("0_left", "1_right")


def test_arrays_that_are_not_compressed_stay_in_their_file(tmp_path):
    formats.npy(tmp_path / "npy", *CIFAR)
    formats.npz(tmp_path / "npz", *CIFAR)
    for kind in ("npy", "npz"):
        assert isinstance(load(str(tmp_path / kind)).train.images, np.memmap), kind


def test_gray_images_among_coloured_ones_get_three_channels(tmp_path):
    formats.image_folder(tmp_path, *CIFAR)
    gray = np.full((32, 32, 1), 77, np.uint8)
    for path in sorted(tmp_path.glob("train/3_down/*.png"))[1:]:
        path.write_bytes(formats.encode(gray))
    images = load(str(tmp_path)).train.images
    assert (images == 77).all(axis=(1, 2, 3)).sum() == 1


def sole(folder, pattern):
    return sorted(folder.glob(pattern))[0]


def damage_size(folder):
    sole(folder, "train/2_up/*.png").write_bytes(formats.encode(np.zeros((32, 31, 3), np.uint8)))


def damage_empty_class(folder):
    for path in folder.glob("train/2_up/*"):
        path.unlink()


def damage_alpha(folder):
    sole(folder, "train/2_up/*.png").write_bytes(formats.encode(np.zeros((32, 32, 4), np.uint8)))


def damage_text(folder):
    sole(folder, "test/2_up/*.png").write_bytes(b"<html>404</html>")


def damage_checksum(folder):
    path = sole(folder, "train/2_up/*.png")
    data = bytearray(path.read_bytes())
    data[-13] ^= 1  # of the pixels' checksum, before the last twelve bytes; Pillow decodes without looking at it
    path.write_bytes(data)


def damage_extra_class(folder):
    (folder / "test/zebra").mkdir()


def damage_nothing_but_one_class(folder):
    for path in folder.glob("train/[1-9]*/*"):
        path.unlink()
    for path in folder.glob("train/[1-9]*"):
        path.rmdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_size, r"train/2_up/\d+.png is 32x31 pixels, the first image is 32x32; give images of one size"),
        (damage_empty_class, "train/2_up holds no image; every class needs one"),
        (damage_alpha, r"train/2_up/\d+.png has mode RGBA; give 8 bits a channel"),
        (damage_text, r"test/2_up/\d+.png cannot be decoded as an image"),
        (damage_checksum, r"train/2_up/\d+.png cannot be decoded as an image"),
        (
            damage_extra_class,
            "test/zebra is a class that the training images do not have; check its spelling, or remove it",
        ),
        (damage_nothing_but_one_class, "train has 1 class folders; give one for each class, at least 2"),
    ],
)
def test_a_damaged_image_folder_is_named(tmp_path, damage, message):
    formats.image_folder(tmp_path, *CIFAR)
    damage(tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path}/{message}"):
        load(str(tmp_path))


def png(mode="RGB", **options):
    image = Image.new(mode, (32, 32))
    if mode == "P":
        image.putpalette(range(256))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def png_of_16_bits():
    """RGB, which Pillow reads and does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    pixels = zlib.compress(32 * (b"\0" + bytes(32 * 6)))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animation(kind):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png("P", transparency=0), "has mode P with transparency; give 8 bits a channel, gray or RGB, without"),
        (png("P", transparency=bytes([255, 0])), "has mode P with transparency"),
        (png("RGB", transparency=(0, 0, 0)), "has mode RGB with transparency"),
        (png("L", transparency=0), "has mode L with transparency"),
        (png("LA"), "has mode LA; give"),
        (png_of_16_bits(), "has mode RGB with 16 bits a channel; give 8 bits a channel"),
        (b"P6 32 32 65535\n" + bytes(32 * 32 * 6), "has mode RGB with 16 bits a channel"),
        (b"P5 32 32 65535\n" + bytes(32 * 32 * 2), "has mode I"),
        (animation("PNG"), "is an animation of 2 images; give each as a separate file"),
        (animation("WEBP"), "is an animation of 2 images; give each as a separate file"),
    ],
    ids=["palette", "palette, several", "colour", "gray", "alpha", "deep", "deep PPM", "deep PGM", "APNG", "WebP"],
)
def test_what_would_be_lost_is_refused_wherever_a_format_keeps_it(data, message):
    with pytest.raises(InputError, match=f"^x {message}"):
        decode("x", data, None)


def test_what_loses_nothing_is_read():
    for data in (png(), png("P"), b"P6 32 32 255\n" + bytes(32 * 32 * 3), b"P6 32 32 31\n" + bytes(32 * 32 * 3)):
        assert decode("x", data, None).shape == (32, 32, 3)
    assert decode("x", png("1"), None).shape == decode("x", png("L"), None).shape == (32, 32, 1)


def test_damaged_annotations_are_named(tmp_path):
    formats.tiny_imagenet(tmp_path, *TINY)
    path = tmp_path / "tiny-imagenet-200/val/val_annotations.txt"
    text = path.read_text()
    path.write_text(text.replace("n00000007", "n99999999"))
    with pytest.raises(InputError, match=f"^{path} has the line 'val_1.JPEG.tn99999999.*one of wnids.txt"):
        load("tiny_imagenet", data_dir=tmp_path)
    path.write_text("".join(text.splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=f"^{path} lists 5 images and .* holds 6"):
        load("tiny_imagenet", data_dir=tmp_path)


def test_a_missing_part_of_a_parquet_data_set_is_named(tmp_path):
    formats.parquet(tmp_path, *CIFAR)
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=rf"^{tmp_path} has 1 of the 2 files train-\*.parquet; download the others"):
        load(str(tmp_path))


def test_parquet_files_with_a_digest_in_their_name_are_all_needed_too(tmp_path):
    formats.parquet(tmp_path, *CIFAR)
    for path in tmp_path.glob("*.parquet"):
        path.rename(path.with_stem(f"{path.stem}-b42a775f407cee45"))
    assert as_set(*load(str(tmp_path)).train) == as_set(*CIFAR[0])
    lost = tmp_path / "test-00001-of-00002-b42a775f407cee45.parquet"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(InputError, match=rf"^{tmp_path} has 1 of the 2 files test-\*.parquet; download the others"):
        load(str(tmp_path))
    lost.write_bytes(content)
    lost.with_stem("test-00001-of-00002").write_bytes(content)
    with pytest.raises(InputError, match="has part 1 of 2 twice"):
        load(str(tmp_path))


def test_a_batch_of_cifar_in_the_place_of_another_is_refused(tmp_path):
    formats.cifar_binary(tmp_path, *CIFAR)
    batches = sorted(tmp_path.rglob("data_batch_*.bin"))
    batches[3].write_bytes(batches[1].read_bytes())
    with pytest.raises(InputError, match=r"data_batch_4.bin is a copy of data_batch_2.bin; download it again"):
        load("cifar10", data_dir=tmp_path)


def test_hidden_labels_and_other_columns_are_refused(tmp_path):
    hidden = (CIFAR[1][0], np.full(10, -1))
    formats.parquet(tmp_path / "hidden", CIFAR[0], hidden)
    with pytest.raises(
        InputError, match=r"test-00000-of-00002.parquet has label -1; hidden test labels cannot be used"
    ):
        load(str(tmp_path / "hidden"))
    formats.parquet(tmp_path / "other", *CIFAR, label="species")
    with pytest.raises(InputError, match="has columns img, species; give an image as image or img, and a label as"):
        load(str(tmp_path / "other"))


def test_files_of_another_data_set_are_refused(tmp_path):
    formats.cifar_binary(tmp_path / "cifar10", *CIFAR)
    with pytest.raises(InputError, match="svhn was not found"):
        load("svhn", data_dir=tmp_path)
    formats.npz(tmp_path / "gray", *GRAY)
    with pytest.raises(InputError, match=r"^svhn has images \(32, 32, 3\), but these files have \(28, 28, 1\)"):
        load("svhn", data_dir=tmp_path / "gray")
    formats.npz(tmp_path / "shifted", (CIFAR[0][0], CIFAR[0][1] + 1), CIFAR[1])
    with pytest.raises(InputError, match=r"svhn train has label 10; give labels in .* count from 1: subtract 1"):
        load("svhn", data_dir=tmp_path / "shifted")
    with pytest.raises(InputError, match="class 0 has no training example; labels seem to count from 1: subtract 1"):
        load(str(tmp_path / "shifted"))


def test_a_path_that_holds_nothing_lists_every_format(tmp_path):
    with pytest.raises(InputError) as caught:
        load(str(tmp_path))
    for file in (
        "dataset.json",
        "train.npz",
        "x_train.npy",
        "train-*.parquet",
        "cifar-10-batches-py",
        "tiny-imagenet-200",
    ):
        assert file in str(caught.value)
    assert "train/CLASS/*.png" in str(caught.value)
    with pytest.raises(InputError, match=f"is a path; leave out data_dir='{tmp_path}'"):
        load(str(tmp_path), data_dir=tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path}/none does not exist"):
        load(f"{tmp_path}/none")


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    formats.cifar_binary(tmp_path, *CIFAR)

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(InputError, match=r"data_batch_1.bin cannot be read: Permission denied"):
        load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("name", KNOWN)
def test_the_table_is_consistent(name):
    known = KNOWN[name]
    assert len(known.mean) == len(known.std) == known.image_shape[2]
    assert len(known.class_names) in (0, known.classes)
    if not known.flip:
        with pytest.raises(InputError, match="flip=True would mirror the digits"):
            check_augmentation(name, True)


def test_the_circles_are_the_papers_in_bytes():
    dataset = load("circles")
    points = (dataset.train.images.reshape(-1, 3) / 255 - 0.5) * 4
    radius = np.hypot(*points.T[:2])
    for label, expected in ((0, 0.35), (1, 1.0)):
        squares = radius[dataset.train.labels == label] ** 2
        assert abs(squares.mean() - expected**2 - 2 * 0.2**2) < 0.1
    assert abs(dataset.train.labels[:100].mean() - 0.5) < 0.2


def test_a_folder_that_is_only_a_part_is_named_first(tmp_path, monkeypatch):
    formats.image_folder(tmp_path / "png", *CIFAR)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"^png/train is one part of a data set; did you mean \./png\? .* was not found"
    ):
        load("./png/train")
    (tmp_path / "png" / "test").rename(tmp_path / "png" / "tests")
    with pytest.raises(InputError, match=r"^png has train/ but no test/, val/, valid/ or validation/\. a data set in"):
        load("./png")


def test_a_file_with_too_few_labels_is_named_with_its_ending(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    arrays = {"x_train": images, "y_train": np.array([0, 1, 0]), "x_test": images, "y_test": np.array([0, 1, 0, 1])}
    np.savez(tmp_path / "len.npz", **arrays)
    with pytest.raises(InputError, match=r"len\.npz train has 4 images but 3 labels"):
        load(str(tmp_path / "len.npz"))
