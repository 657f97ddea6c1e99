"""Small sets of encoded images of mixed sizes, made on the fly."""

import io

import numpy as np
from PIL import Image

from piat_jax.data.records.writing import Encoded, write_split

CLASSES = ("even", "odd", "third")


def picture(index, low=20, high=60):
    """An image of Pillow whose size and colours come from its number: waves, so that JPEG keeps them."""
    rng = np.random.default_rng(index)
    height, width = rng.integers(low, high, 2)
    y, x = np.mgrid[:height, :width]
    phases, waves = rng.uniform(0, 6, 3), rng.uniform(0.05, 0.2, (3, 2))
    pixels = [127 + 120 * np.sin(waves[c, 0] * y + waves[c, 1] * x + phases[c]) for c in range(3)]
    return Image.fromarray(np.stack(pixels, -1).astype(np.uint8))


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def examples(count, start=0, named=""):
    """JPEG, PNG and WebP in turn, all of the classes; their files are called by a word and their number, or not."""
    kinds = (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"))
    for index in range(start, start + count):
        kind, suffix = kinds[index % 5 % 3]
        name = f"{named}{index}" if named else ""
        yield Encoded(encode(picture(index), kind), index % len(CLASSES), suffix, name)


def write_set(folder, kind, train=30, test=9, per_shard=12):
    for split, count, start in (("train", train, 0), ("test", test, 1000)):
        write_split(folder, kind, split, examples(count, start), class_names=CLASSES, per_shard=per_shard)
    return folder
