"""What is in a set of encoded images, and how fast a core decodes it: a sample is read, or every image."""

import collections
import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from piat_jax.core.checks import InputError, check_count
from piat_jax.data.records.geometry import crop_draws, open_image, training_crop
from piat_jax.data.records.images import RecordImages
from piat_jax.data.types import Dataset

NAMED = 10
"""Images that cannot be decoded that the text names, of each split."""


class EncodedSplit(NamedTuple):
    """What was found in a split."""

    counts: np.ndarray  # [K], examples of each class
    read: int  # images of the sample
    sizes: np.ndarray  # [R, 2], width and height in pixels, of those that can be decoded
    file_bytes: np.ndarray  # [R], their sizes
    formats: dict[str, int]  # how many of JPEG, PNG, ...
    bad: tuple[str, ...]  # a line for each that cannot be decoded
    per_core: float  # training crops a second that one core reads, decodes and cuts; 0 where there is none


def inspect_encoded(dataset: Dataset, *, images: int = 512) -> dict[str, EncodedSplit]:
    """What the training and the test images are: "train" and "test".

    Args:
      dataset: of encoded images, as `load(name, decoding=...)` gives it.
      images: how many of each split are decoded, at equal distances; 0 is all.

    Raises:
      InputError: images that are arrays.
    """
    check_count("images", images, 0)
    splits = {"train": dataset.train, "test": dataset.test}
    return {name: _look(split.images, dataset.num_classes, images) for name, split in splits.items()}


def _look(split: object, num_classes: int, images: int) -> EncodedSplit:
    if not isinstance(split, RecordImages):
        raise InputError(f"images are {type(split).__name__}; give a data set of encoded images, or call inspect")
    count = len(split) if not images else min(images, len(split))
    which = np.unique(np.linspace(0, len(split) - 1, count).astype(int)).tolist()
    began = time.thread_time()
    timed = [_decode(split, index) for index in which[:64]]
    seconds = time.thread_time() - began
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = [*timed, *threads.map(lambda index: _decode(split, index), which[64:])]
    good = [each for each in found if not isinstance(each, str)]
    return EncodedSplit(
        counts=np.bincount(split.labels, minlength=num_classes),
        read=len(found),
        sizes=np.array([each[0] for each in good]).reshape(-1, 2),
        file_bytes=np.array([each[1] for each in good]),
        formats=dict(collections.Counter(each[2] for each in good).most_common()),
        bad=tuple(each for each in found if isinstance(each, str)),
        per_core=len(timed) / seconds if good else 0.0,
    )


def _decode(split: RecordImages, index: int) -> tuple[tuple[int, int], int, str] | str:
    """Width and height, bytes and format of an image whose training crop was made, or why there is none."""
    from PIL import Image

    data = split.read(index)
    try:
        image = open_image(split.name(index), data)
        training_crop(image, split.decoding, crop_draws((0,), 0, index))
    except InputError as error:
        return str(error)
    with Image.open(io.BytesIO(data)) as raw:
        return image.size, len(data), str(raw.format)


def encoded_to_text(dataset: Dataset, report: dict[str, EncodedSplit]) -> str:
    """The report in a few lines."""
    lines = [f"{dataset.name} from {dataset.where}: encoded images, {dataset.num_classes:,} classes"]
    for name, split in report.items():
        counts = split.counts
        lines.append(
            f"{name}: {counts.sum():,} examples, {counts.min():,} to {counts.max():,} of a class; "
            f"{split.read:,} decoded"
        )
        if len(split.sizes):
            sides = split.sizes.min(axis=1)
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in split.formats.items())
            lines.append(
                f"  shorter side {sides.min()} to {sides.max()} pixels, half of them up to {np.median(sides):.0f}; "
                f"{split.file_bytes.mean() / 1000:,.0f} kB an image; {kinds}"
            )
        if split.bad:
            lines.append(f"  {len(split.bad):,} of {split.read:,} cannot be decoded:")
            lines += [f"    {line}" for line in split.bad[:NAMED]]
            lines += [f"    and {len(split.bad) - NAMED:,} more"] * (len(split.bad) > NAMED)
    train = report["train"]
    if train.per_core:
        size = dataset.train.images.shape[1]
        lines.append(
            f"a core of this machine makes {train.per_core:,.0f} training crops of {size} pixels a second; "
            f"{os.cpu_count()} cores, if all do so, about {train.per_core * (os.cpu_count() or 1):,.0f}"
        )
    return "\n".join(lines)
