"""Accuracy class by class."""

import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.evaluation import AutoAttack, class_accuracies, find_worst_class, worst_class


def test_each_class_has_the_mean_of_its_examples():
    rng = np.random.default_rng(0)
    labels, correct = rng.choice([0, 1, 3], 60), rng.uniform(size=60) < 0.6  # classes 2 and 4 have no example
    found = class_accuracies(correct, labels, 5)
    expected = [correct[labels == k].mean() if k in (0, 1, 3) else np.nan for k in range(5)]
    np.testing.assert_allclose(found, expected)
    worst = find_worst_class(found)
    assert worst == (int(np.nanargmin(expected)), pytest.approx(np.nanmin(expected)))
    np.testing.assert_allclose(worst.accuracy, worst_class(correct, labels, 5), rtol=1e-6)
    # The mean over examples is that over classes, weighted by their sizes.
    sizes = np.bincount(labels, minlength=5)
    np.testing.assert_allclose(np.nansum(found * sizes) / 60, correct.mean())


def test_of_classes_that_are_equally_bad_the_first_is_told():
    assert find_worst_class(np.array([np.nan, 0.5, 0.25, 0.25])).label == 2


def test_a_robust_evaluation_tells_its_worst_class():
    def logits_fn(x):  # class 0 where an image is bright
        bright = x.mean((1, 2, 3)) - 0.5
        return jnp.stack([bright, -bright], axis=1)

    levels = np.float32([0.9, 0.9, 0.52, 0.1, 0.48])
    images, labels = levels.reshape(5, 1, 1, 1) * np.ones((5, 2, 2, 1), np.float32), np.array([0, 0, 0, 1, 1])
    result = AutoAttack(eps=0.1, attacks=("apgd-ce",), steps=3).run(logits_fn, images, labels)
    assert result.robust.tolist() == [True, True, False, True, False]
    assert result.worst_class == (1, 0.5)
    assert "\nworst class 1: 50.00%\n" in str(result)
    assert result.summary()["worst_class"] == {"label": 1, "accuracy": 0.5}
