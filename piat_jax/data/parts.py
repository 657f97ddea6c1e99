"""Representative parts of a data set: the first n examples, and examples held out of training."""

import math

import numpy as np

from piat_jax.core import scratch
from piat_jax.core.checks import InputError, check_choice
from piat_jax.data.records.images import RecordImages
from piat_jax.data.types import Split

HOLD_OUT = ("by class", "last")
LEAST_CHANCE = {False: 1e-6, True: 0.05}
"""Least probability of a part's class counts in a random order; keyed by whether the examples are sorted by class, in
which case the check is stricter."""


def first(argument: str, count: int, name: str, split: Split, *, as_listed: bool = False) -> Split:
    """The first `count` examples, copied so that the rest is freed; 0 = all. Encoded images stay encoded.

    Memory-mapped images stay mapped if they have more than `core.scratch.IN_MEMORY_BYTES`.

    With `as_listed` the order is intended, so the classes of the first examples are not checked.

    Raises:
      InputError: there are fewer examples, or the first ones have other classes than the entire set.
    """
    images, labels = split
    if count > len(labels):
        raise InputError(
            f"{argument}={count} is more than the {len(labels)} of {name!r}; give at most {len(labels)}, or 0 for all"
        )
    if count and count < len(labels):
        if not as_listed:
            check_like_the_whole(f"{argument}={count}", labels, labels[:count])
        if isinstance(images, RecordImages):
            return Split(images.part(np.arange(count)), labels[:count].copy())  # type: ignore[arg-type]
        part = images[:count]
        mapped = isinstance(part, np.memmap) and part.nbytes > scratch.IN_MEMORY_BYTES
        return Split(part if mapped else np.array(part), labels[:count].copy())
    return Split(images if isinstance(images, np.ndarray | RecordImages) else images[:], labels)


def hold_out(split: Split, count: int, *, how: str = "by class") -> tuple[Split, Split]:
    """Split off `count` training examples, which are held out to choose the best epoch.

    Args:
      split: the training examples.
      count: number of examples to hold out.
      how: "by class" takes the last ones of each class, in proportion to its size; "last" takes the last ones of all,
        as earlier versions did.

    Returns:
      The remaining and the held-out examples, both in their original order.

    Raises:
      InputError: a class would have no training example left; with "last", nothing would be left, or the examples are
        sorted by class.

    >>> split = Split(np.zeros((6, 1, 1, 1), np.uint8), np.array([0, 0, 0, 0, 1, 1], np.int32))
    >>> [part.labels.tolist() for part in hold_out(split, 3)]
    [[0, 0, 1], [0, 0, 1]]
    """
    check_choice("how", how, HOLD_OUT)
    argument, labels = f"validation_examples={count}", split.labels
    if count >= len(labels):
        raise InputError(f"{argument} leaves nothing of the {len(labels)} training examples")
    held = np.zeros(len(labels), bool)
    if how == "last":
        check_like_the_whole(argument, labels, labels[-count:])
        held[-count:] = True
    else:
        for label, number in enumerate(_shares(argument, np.bincount(labels), count)):
            held[np.flatnonzero(labels == label)[::-1][:number]] = True
    return _part(split, ~held), _part(split, held)


def _part(split: Split, mask: np.ndarray) -> Split:
    images = split.images.part(mask) if isinstance(split.images, RecordImages) else split.images[mask]
    return Split(images, split.labels[mask])  # type: ignore[arg-type]


def _shares(argument: str, counts: np.ndarray, total: int) -> np.ndarray:
    """The number to take from each class, in proportion to its count; largest remainders are rounded up."""
    exact = counts * total / counts.sum()
    most = np.maximum(counts - 1, 0)  # one must remain for training
    shares = np.minimum(np.floor(exact).astype(int), most)
    while left := total - shares.sum():
        open_ = np.flatnonzero(shares < most)
        if not len(open_):
            raise InputError(f"{argument} leaves a class without a training example; give at most {most.sum()}")
        by_remainder = open_[np.argsort(-(exact - shares)[open_], kind="stable")]
        shares[by_remainder[:left]] += 1
    return shares


def check_like_the_whole(argument: str, labels: np.ndarray, part: np.ndarray) -> None:
    """Raise InputError if a part does not represent the classes of the whole, as when examples are sorted by class.

    A part is rejected if its class counts have a probability below `LEAST_CHANCE` in a random order, or if it lacks
    classes and neighbours mostly have the same class.

    Args:
      argument: the beginning of the message.
      labels: of all examples.
      part: the part's labels.

    >>> check_like_the_whole("train_examples=25", np.repeat([1, 0], 25), np.repeat([1], 25))
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: train_examples=25 has 1 of 2 classes: the examples are not mixed; shuffle them
    """
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = np.bincount(np.searchsorted(np.unique(labels), part), minlength=len(counts))
    classes = int((kept > 0).sum())
    grouped = _lies_class_by_class(places, counts)
    lacks = grouped and classes < min(len(counts), len(part))
    if lacks or _log_chance(counts, kept) < math.log(LEAST_CHANCE[grouped]):
        what = f"{classes} of {len(counts)} classes" if classes < len(counts) else "other shares of the classes"
        raise InputError(f"{argument} has {what}: the examples are not mixed; shuffle them")


def _lies_class_by_class(labels: np.ndarray, counts: np.ndarray) -> bool:
    """Whether neighbours have the same class far more often than in a random order."""
    alike = int((labels[1:] == labels[:-1]).sum())
    expected = float((counts * (counts - 1)).sum() / len(labels))
    return alike > expected + 4 * math.sqrt(expected) + 4


def _log_chance(counts: np.ndarray, kept: np.ndarray) -> float:
    """The logarithm of a bound on the probability that a random part is as unlikely as this one.

    The bound is the probability of exactly these counts, `prod_c C(N_c, n_c) / C(N, n)`, times the number of ways to
    distribute n among K classes.
    """
    exactly = sum(map(_log_choose, counts.tolist(), kept.tolist())) - _log_choose(int(counts.sum()), int(kept.sum()))
    return exactly + _log_choose(int(kept.sum()) + len(counts) - 1, len(counts) - 1)


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
