"""Inspection of encoded images: statistics and a core's decoding speed, from a sample or from all images."""

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
"""Maximum number of undecodable images that the text lists per split."""


class EncodedSplit(NamedTuple):
    """Statistics of a split."""

    counts: np.ndarray  # [K], examples of each class
    read: int  # images of the sample
    sizes: np.ndarray  # [R, 2], width and height in pixels, of decodable images
    file_bytes: np.ndarray  # [R], their file sizes
    formats: dict[str, int]  # number of JPEG, PNG, ... files
    bad: tuple[str, ...]  # one line per image that cannot be decoded
    per_core: float  # training crops per second that one core reads, decodes and crops; 0 if there are none


def inspect_encoded(dataset: Dataset, *, images: int = 512) -> dict[str, EncodedSplit]:
    """Inspect the training and the test images; returns "train" and "test".

    Args:
      dataset: of encoded images, from `load(name, decoding=...)`.
      images: number of evenly spaced images to decode in each split; 0 = all.

    Raises:
      InputError: the images are arrays.
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
    """Make an image's training crop; returns (width, height), bytes and format, or the error as text."""
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
    """Format the report in a few lines."""
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
            f"all {os.cpu_count()} cores together about {train.per_core * (os.cpu_count() or 1):,.0f}"
        )
    return "\n".join(lines)
