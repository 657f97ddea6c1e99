"""Writers of small real files of every format, one class of pixels each, for the tests that read them."""

import gzip
import io
import json
import pickle
import struct
import tarfile

import numpy as np
from PIL import Image
from scipy.io import savemat

NAMES = ("left", "right", "up", "down", "in", "out", "near", "far", "old", "new")


def damaged_versions(whole, trials):
    """Versions of a file, in turn with one bit flipped and cut off at a random place: (whether cut, bytes)."""
    rng = np.random.RandomState(0)
    for trial in range(trials):
        damaged = bytearray(whole)
        if trial % 2:
            del damaged[rng.randint(len(whole)) :]
        else:
            damaged[rng.randint(len(whole))] ^= 1 << rng.randint(8)
        yield bool(trial % 2), bytes(damaged)


def examples(count, shape, classes, seed):
    """Smooth random images, as photographs are, and labels that run through the classes."""
    rng = np.random.RandomState(seed)
    images = np.cumsum(rng.randint(-9, 10, (count, *shape)), axis=2) + rng.randint(0, 256, (count, 1, 1, shape[2]))
    return images.astype(np.uint8), (np.arange(count) * 7 % classes).astype(np.int32)


def cifar_rows(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_tar(path, folder, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def cifar_parts(train, test, names):
    parts = zip(np.array_split(train[0], len(names) - 1), np.array_split(train[1], len(names) - 1))
    return dict(zip(names, [*parts, test]))


def cifar_python(folder, train, test):
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (images, labels) in cifar_parts(
        train, test, [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    ).items():
        content = {b"data": cifar_rows(images), b"labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def binary_files(train, test):
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    return {
        name: np.concatenate([labels[:, None].astype(np.uint8), cifar_rows(images)], axis=1).tobytes()
        for name, (images, labels) in cifar_parts(train, test, names).items()
    }


def cifar_binary(folder, train, test):
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    for name, data in binary_files(train, test).items():
        (folder / "cifar-10-batches-bin" / name).write_bytes(data)


def cifar_archive(folder, train, test):
    folder.mkdir(parents=True, exist_ok=True)
    write_tar(folder / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary_files(train, test))


def cifar100_binary(folder, train, test):
    (folder / "cifar-100-binary").mkdir(parents=True)
    for name, (images, labels) in (("train.bin", train), ("test.bin", test)):
        both = np.stack([labels % 20, labels], axis=1).astype(np.uint8)
        (folder / "cifar-100-binary" / name).write_bytes(np.concatenate([both, cifar_rows(images)], axis=1).tobytes())


def svhn(folder, train, test):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in (("train", train), ("test", test)):
        y = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
        savemat(folder / f"{name}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": y}, do_compression=True)


def idx(folder, train, test):
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in (("train", train), ("t10k", test)):
        for name, array in ((f"{part}-images-idx3-ubyte", images[..., 0]), (f"{part}-labels-idx1-ubyte", labels)):
            data = struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.astype("u1").tobytes()
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))


def npz(folder, train, test):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in (("train", train), ("test", test)):
        np.savez(folder / f"{name}.npz", image=images, label=labels)


def npz_compressed(folder, train, test):
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in (("train", train), ("test", test)):
        np.savez_compressed(folder / f"{name}.npz", image=images, label=labels)


def npy(folder, train, test):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(("x_train", "y_train", "x_test", "y_test"), (*train, *test)):
        np.save(folder / f"{name}.npy", array)


def encode(image, kind="png"):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, kind)
    return buffer.getvalue()


def image_folder(folder, train, test, kind="png"):
    for split, (images, labels) in (("train", train), ("test", test)):
        for index, (image, label) in enumerate(zip(images, labels)):
            place = folder / split / f"{label}_{NAMES[label]}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index:03}.{kind}").write_bytes(encode(image, kind))


def tiny_imagenet(folder, train, test):
    folder = folder / "tiny-imagenet-200"
    classes = [f"n{label:08}" for label in range(200)]
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(reversed(classes)) + "\n")
    (folder / "words.txt").write_text("".join(f"{wnid}\tthing {n}, object\n" for n, wnid in enumerate(classes)))
    for index, (image, label) in enumerate(zip(*train)):
        place = folder / "train" / classes[label] / "images"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{classes[label]}_{index}.JPEG").write_bytes(encode(image))
    (folder / "val/images").mkdir(parents=True)
    lines = []
    for index, (image, label) in enumerate(zip(*test)):
        (folder / f"val/images/val_{index}.JPEG").write_bytes(encode(image))
        lines.append(f"val_{index}.JPEG\t{classes[label]}\t0\t0\t62\t62\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))


def parquet(folder, train, test, image="img", label="label", shards=2):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in (("train", train), ("test", test)):
        described = {"info": {"features": {label: {"names": list(NAMES), "_type": "ClassLabel"}}}}
        for shard, rows in enumerate(np.array_split(np.arange(len(images)), shards)):
            columns = {
                image: [{"bytes": encode(images[row]), "path": None} for row in rows],
                label: pa.array(labels[rows].tolist(), pa.int64()),
            }
            table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(described)})
            path = folder / f"{split}-{shard:05}-of-{shards:05}.parquet"
            pq.write_table(table, path, write_page_checksum=True)
