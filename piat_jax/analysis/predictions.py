"""The stored predictions of one checkpoint under one attack: the predicted classes, and a few images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import write_arrays

FOLDER = "predictions"
MOST_BROKEN, MOST_HELD = 8, 4
"""Number of stored images of examples that the attack broke, and of those that held."""
IMAGE_BYTES = 2 * 2**20
"""Maximum size of the stored clean images, and of the attacked ones."""


@dataclass(frozen=True)
class Predictions:
    """The classes that a checkpoint predicts for N images, and the images of M of them."""

    labels: np.ndarray  # [N] true classes
    predicted: np.ndarray  # [N] for attacked images, or clean ones; -1 if a logit is not finite
    seconds: float  # evaluation time, including compilation
    indices: np.ndarray  # [M] the images' examples
    clean: np.ndarray  # [M, H, W, C] uint8, or float16 in [0, 1]
    attacked: np.ndarray  # [M, H, W, C] float16

    def save(self, path: Path) -> None:
        """Write a file that `load` reads."""
        path.parent.mkdir(exist_ok=True)
        write_arrays(path, {name: np.asarray(value) for name, value in vars(self).items()})

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read a file that `save` wrote.

        Raises:
          InputError: it is not such a file.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                found: dict[str, Any] = {name: stored[name] for name in cls.__dataclass_fields__}
            found["seconds"] = float(found["seconds"])
            read = cls(**found)
        except (OSError, ValueError, KeyError, EOFError, TypeError, BadZipFile) as error:
            raise InputError(f"{path} cannot be read ({error}); remove it, or evaluate again") from error
        same = len(read.labels) == len(read.predicted) and len(read.indices) == len(read.clean) == len(read.attacked)
        inside = not len(read.indices) or 0 <= read.indices.min() <= read.indices.max() < len(read.labels)
        if not same or not inside or read.clean.shape != read.attacked.shape:
            raise InputError(f"{path} has arrays that do not fit each other; remove it, or evaluate again")
        return read


def path_of(folder: Path, checkpoint: str, attack: str) -> Path:
    """The path of the predictions of a run's checkpoint under an attack.

    >>> path_of(Path("runs/x"), "final:swa", "pgd20").as_posix()
    'runs/x/predictions/final_swa-pgd20.npz'
    """
    return folder / FOLDER / f"{checkpoint.replace(':', '_')}-{attack}.npz"


def choose(correct: np.ndarray, clean: np.ndarray | None, image_shape: Sequence[int]) -> np.ndarray:
    """Choose the first examples that an attack broke, and the first that held, without misclassified clean ones.

    Args:
      correct: `[N]` bool, under the attack.
      clean: `[N]` bool, on the clean image; None if unknown, so that every wrong example counts as broken.
      image_shape: for large images, fewer examples are chosen.

    >>> choose(np.array([False, True, False, True]), np.array([True, True, False, True]), (8, 8, 3)).tolist()
    [0, 1, 3]
    """
    most = max(2, min(MOST_BROKEN + MOST_HELD, IMAGE_BYTES // (2 * math.prod(image_shape))))
    held = np.flatnonzero(correct)[: min(MOST_HELD, most // 2)]
    broken = np.flatnonzero(~correct if clean is None else ~correct & clean)[: min(MOST_BROKEN, most - len(held))]
    return np.concatenate([broken, held])


def make_predictions(
    labels: np.ndarray,
    predicted: np.ndarray,
    *,
    seconds: float,
    shown: tuple[Any, Any] | None = None,
    clean: np.ndarray | None = None,
    correct: np.ndarray | None = None,
) -> Predictions:
    """The predictions to store for an attack.

    Args:
      labels: `[N]`.
      predicted: `[N]`.
      seconds: evaluation time.
      shown: the clean images, `[N, H, W, C]` uint8 or floats in [0, 1], and the attacked ones of the first L examples;
        both may be memory-mapped. None = no images are stored.
      clean: `[N]` the classes predicted for clean images, if known.
      correct: `[N]` bool, the examples that withstand the attack; by default those with a correct prediction.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    left = np.equal(predicted, labels) if correct is None else correct
    indices, kept, made = np.zeros(0, int), np.zeros((0, 1, 1, 1), np.uint8), np.zeros((0, 1, 1, 1), np.float16)
    if shown:
        images, attacked = shown
        first = slice(len(attacked))
        was_right = None if clean is None else np.equal(clean, labels)[first]
        indices = choose(left[first], was_right, attacked.shape[1:])
        if len(indices):
            kept, made = np.asarray(images[indices]), np.asarray(attacked[indices]).astype(np.float16)
            kept = kept if kept.dtype == np.uint8 else kept.astype(np.float16)
    small = np.int16 if max(labels.max(initial=0), predicted.max(initial=0)) < 2**15 else np.int32
    return Predictions(
        labels.astype(small), predicted.astype(small), round(seconds, 3), indices.astype(np.int32), kept, made
    )
