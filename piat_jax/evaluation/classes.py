"""Accuracy by class, on the host."""

from typing import NamedTuple

import numpy as np


class WorstClass(NamedTuple):
    """The class with the lowest accuracy; ties go to the first."""

    label: int
    accuracy: float


def class_accuracies(correct: np.ndarray, labels: np.ndarray, num_classes: int = 0) -> np.ndarray:
    """The accuracy of each class, `[K]` float64: `a_k = mean_{i: y_i = k} correct_i`, NaN for a class without examples.

    Args:
      correct: `[N]` bool, as `correct_under_attack` returns it.
      labels: `[N]` integers.
      num_classes: K; 0 uses the highest label plus one.

    >>> class_accuracies(np.array([True, True, False, True]), np.array([0, 1, 1, 3])).tolist()
    [1.0, 0.5, nan, 1.0]
    """
    labels = np.asarray(labels)
    right = np.bincount(labels, np.asarray(correct, np.float64), minlength=num_classes)
    total = np.bincount(labels, minlength=num_classes)
    return np.where(total > 0, right / np.maximum(total, 1), np.nan)


def find_worst_class(accuracies: np.ndarray) -> WorstClass:
    """The class with the lowest of `class_accuracies`; classes without examples do not count.

    >>> find_worst_class(np.array([0.5, np.nan, 0.25]))
    WorstClass(label=2, accuracy=0.25)
    """
    label = int(np.nanargmin(accuracies))
    return WorstClass(label, float(accuracies[label]))
