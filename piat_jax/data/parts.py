"""Parts of a data set that stand for the whole: the first n examples, and those held out of training."""

import math

import numpy as np

from piat_jax.core import scratch
from piat_jax.core.checks import InputError, check_choice
from piat_jax.data.records.images import RecordImages
from piat_jax.data.types import Split

HOLD_OUT = ("by class", "last")
LEAST_CHANCE = {False: 1e-6, True: 0.05}
"""Of a part to have its classes in a random order; by whether the examples lie class by class, where little is to be
believed."""


def first(argument: str, count: int, name: str, split: Split, *, as_listed: bool = False) -> Split:
    """The first `count` examples, copied so that the rest is freed; 0 means all. Encoded images stay encoded.

    What is mapped from a file stays there where it is more than `core.scratch.IN_MEMORY_BYTES`.

    With `as_listed` their order is meant, whatever classes the first ones are of.

    Raises:
      InputError: there are fewer, or the first ones are of other classes than the whole.
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
    """The training examples without `count` of them, and these: held out to choose the best epoch by.

    Args:
      split: the training examples.
      count: how many to hold out.
      how: "by class" takes the last ones of each class, as many as are its share of all; "last" takes the last ones,
        as versions before did.

    Returns:
      Both in the order in which they were.

    Raises:
      InputError: a class would be left without a training example; for "last", nothing would be left, or the examples
        lie class by class.

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
    """How many of each class, in proportion to their counts; what rounding leaves goes to the largest remainders."""
    exact = counts * total / counts.sum()
    most = np.maximum(counts - 1, 0)  # one is to be trained on
    shares = np.minimum(np.floor(exact).astype(int), most)
    while left := total - shares.sum():
        open_ = np.flatnonzero(shares < most)
        if not len(open_):
            raise InputError(f"{argument} leaves a class without a training example; give at most {most.sum()}")
        by_remainder = open_[np.argsort(-(exact - shares)[open_], kind="stable")]
        shares[by_remainder[:left]] += 1
    return shares


def check_like_the_whole(argument: str, labels: np.ndarray, part: np.ndarray) -> None:
    """Raise InputError where the classes of a part are not those of the whole, as where examples lie class by class.

    A part is refused whose numbers of each class a random order would give with a chance of less than `LEAST_CHANCE`,
    and, where neighbours are mostly alike, one that lacks classes.

    Args:
      argument: opens the message.
      labels: of all examples.
      part: those of the part.

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
    """Whether neighbours are of one class far more often than in a random order."""
    alike = int((labels[1:] == labels[:-1]).sum())
    expected = float((counts * (counts - 1)).sum() / len(labels))
    return alike > expected + 4 * math.sqrt(expected) + 4


def _log_chance(counts: np.ndarray, kept: np.ndarray) -> float:
    """A bound of the chance that a random part is as unlikely as this one, as a logarithm.

    The chance of exactly these numbers, `prod_c C(N_c, n_c) / C(N, n)`, times how many ways there are to share n
    among K classes.
    """
    exactly = sum(map(_log_choose, counts.tolist(), kept.tolist())) - _log_choose(int(counts.sum()), int(kept.sum()))
    return exactly + _log_choose(int(kept.sum()) + len(counts) - 1, len(counts) - 1)


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
