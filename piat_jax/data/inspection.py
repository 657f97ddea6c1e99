"""Inspection of a data set: counts, pixel statistics, duplicates, and a picture of examples of each class."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from piat_jax.core.files import expanded
from piat_jax.data.dataset_info import KNOWN
from piat_jax.data.types import Dataset, Split

BLOCK = 4096
MOST_ROWS = 25


class SplitReport(NamedTuple):
    """Statistics of one split."""

    counts: np.ndarray  # [K], examples of each class
    low: int  # of all pixels, in [0, 255]
    high: int
    mean: np.ndarray  # [C], of pixels in [0, 1]
    std: np.ndarray
    repeated: int  # images that equal an earlier image of the split


class Inspection(NamedTuple):
    """Statistics of a data set."""

    train: SplitReport
    test: SplitReport
    shared: int  # test images that are also training images
    contradicted: int  # of these, with another label


def inspect(dataset: Dataset) -> Inspection:
    """Compute counts per class, pixel range, mean and standard deviation, and exact duplicates.

    >>> from piat_jax.data import load
    >>> report = inspect(load("embedded"))
    >>> int(report.train.counts.sum()), report.test.counts.tolist()[:3], report.shared
    (1024, [100, 100, 100], 0)
    """
    (train, train_labels), (test, test_labels) = (
        _scan(split, dataset.num_classes) for split in (dataset.train, dataset.test)
    )
    shared = train_labels.keys() & test_labels.keys()
    contradicted = sum(not test_labels[digest] <= train_labels[digest] for digest in shared)
    return Inspection(train, test, len(shared), contradicted)


def _scan(split: Split, num_classes: int) -> tuple[SplitReport, dict[bytes, set[int]]]:
    """One split's report, and the labels of each distinct image by its digest."""
    channels = split.images.shape[-1]
    sums, squares = np.zeros(channels), np.zeros(channels)
    low, high = 255, 0
    labels_of: dict[bytes, set[int]] = {}
    for images, labels in _blocks(split):
        # Sums of bytes and of their squares are whole numbers below 2^53, thus exact.
        values = images.reshape(-1, channels).astype(np.float64)
        sums += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
        low, high = min(low, int(images.min())), max(high, int(images.max()))
        for image, label in zip(images, labels):
            digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
            labels_of.setdefault(digest, set()).add(int(label))
    pixels = split.images.size / channels
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    counts = np.bincount(split.labels, minlength=num_classes)
    return SplitReport(counts, low, high, mean / 255, std / 255, len(split.labels) - len(labels_of)), labels_of


def _blocks(split: Split) -> Iterator[Split]:
    for start in range(0, len(split.labels), BLOCK):
        yield Split(split.images[start : start + BLOCK], split.labels[start : start + BLOCK])


def to_text(dataset: Dataset, report: Inspection) -> str:
    """Format the report in a few lines, with differences from the published data set."""
    height, width, channels = dataset.train.images.shape[1:]
    lines = [f"{dataset.name} from {dataset.where}: {height}x{width}x{channels}, {dataset.num_classes} classes"]
    known = KNOWN.get(dataset.name)
    for name, split, expected in (
        ("train", report.train, known.train if known else 0),
        ("test", report.test, known.test if known else 0),
    ):
        total = int(split.counts.sum())
        published = f", {expected:,} were published" if expected and expected != total else ""
        lines.append(
            f"{name}: {total:,} examples{published}, {split.counts.min():,} to {split.counts.max():,} of a class; "
            f"pixels {split.low} to {split.high}, mean {_numbers(split.mean)}, std {_numbers(split.std)}; "
            f"{split.repeated:,} repeated"
        )
    lines.append(f"test images that are training images: {report.shared:,}, with another label {report.contradicted:,}")
    if known:
        lines.append(
            f"{known.title} is published with mean {_numbers(known.mean)}, std {_numbers(known.std)}; "
            f"usual: crop_padding={known.crop_padding}, flip={known.flip}"
        )
    width = max(map(len, dataset.class_names))
    lines += [f"{'class':>5}  {'':{width}}  {'train':>8}  {'test':>8}"]
    lines += [
        f"{label:>5}  {name:{width}}  {report.train.counts[label]:>8,}  {report.test.counts[label]:>8,}"
        + ("  <- no training example" if not report.train.counts[label] else "")
        for label, name in enumerate(dataset.class_names)
    ]
    return "\n".join(lines)


def _numbers(values: np.ndarray | tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"


def draw_sheet(dataset: Dataset, path: Path) -> None:
    """Write a picture with one row per class: its number, its name and its first training examples.

    Args:
      dataset: up to 25 classes are shown with ten examples each, more classes in several columns with four each.
      path: .png, .pdf or .svg.
    """
    from matplotlib.figure import Figure

    height, width, channels = dataset.train.images.shape[1:]
    classes = dataset.num_classes
    rows = min(classes, MOST_ROWS)
    columns = -(-classes // rows)
    each = 10 if columns == 1 else 4
    margin, gap = 3 * width, 2
    sheet = np.full((rows * (height + gap), columns * (margin + each * (width + gap)), channels), 255, np.uint8)
    texts = []
    for label, name in enumerate(dataset.class_names):
        row, column = label % rows, label // rows
        top, left = row * (height + gap), column * (margin + each * (width + gap))
        texts.append((left + margin - gap, top + height / 2, f"{label} {name}"[:18]))
        for place, image in enumerate(dataset.train.images[np.flatnonzero(dataset.train.labels == label)[:each]]):
            x = left + margin + place * (width + gap)
            sheet[top : top + height, x : x + width] = image
    figure = Figure(figsize=(sheet.shape[1] * 0.32 / height, sheet.shape[0] * 0.32 / height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet if channels == 3 else sheet[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.axis("off")
    for x, y, text in texts:
        axes.text(x, y, text, ha="right", va="center", fontsize=7)
    figure.savefig(expanded(path))
