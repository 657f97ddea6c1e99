"""The picture that loggers get is of the images that the evaluation has counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.forward import make_logits_fn
from piat_jax.core.rng import named_key
from piat_jax.data import Split
from piat_jax.evaluation import correct_under_attack
from piat_jax.experiment import config
from piat_jax.experiment.evaluation import evaluation_attack
from piat_jax.experiment.pictures import painter, picture
from piat_jax.models import create

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1], np.int32)
NET = create("mlp", num_classes=3, hidden=(8,))
WEIGHTS = NET.init(jax.random.key(1), jnp.zeros((1, 4, 4, 3)))


def experiment(select, **fields):
    fields = {"evaluation.attacks": ("clean", select), "evaluation.select": select, "attack.eps": 0.1, **fields}
    return config.load("embedded:pgd_at", fields, checked=False)


def rows(image, count, side=4):
    """The images of a picture, `[3, N, H, W, C]`."""
    inside = image[1:, 1:].reshape(3, side + 1, count, side + 1, -1)
    return inside[:, :side, :, :side].swapaxes(1, 2)


def test_its_rows_are_clean_adversarial_and_difference():
    shown = painter(experiment("pgd3", **{"log.images": 4}), NET, Split(IMAGES, LABELS))(WEIGHTS)
    clean, adversarial, difference = rows(shown.image, 4).astype(int)
    np.testing.assert_array_equal(clean, IMAGES[:4])
    # The very images of the evaluation: same key, same indices.
    seen = []

    def watched(logits_fn, x, y, *, key, indices=None):
        found = evaluation_attack(experiment("pgd3"), "pgd3")(logits_fn, x, y, key=key, indices=indices)
        jax.debug.callback(lambda images: seen.append(np.asarray(images)), found)
        return found

    key = named_key(jax.random.key(0), "evaluate")
    network = make_logits_fn(NET, WEIGHTS)
    correct_under_attack(network, IMAGES, LABELS, jax.tree_util.Partial(watched), key=key, batch_size=5)
    jax.effects_barrier()
    np.testing.assert_allclose(adversarial, 255 * seen[0][:4], atol=0.51)
    change = seen[0][:4] - IMAGES[:4] / 255
    assert 0.05 < np.abs(change).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(difference, 255 * (0.5 + change / (2 * np.abs(change).max())), atol=0.51)
    classes = np.asarray(network(jnp.asarray(IMAGES[:4] / 255, jnp.float32))).argmax(axis=1)
    assert shown.caption.startswith("rows: clean, pgd3, difference")
    assert f"{LABELS[0]}: {classes[0]} " in shown.caption


@pytest.mark.parametrize("select", ["clean", "fmn3"])
def test_what_is_no_attack_in_a_ball_leaves_the_images_as_they_are(select):
    shown = painter(experiment(select, **{"log.images": 9}), NET, Split(IMAGES, LABELS))(WEIGHTS)
    clean, adversarial, difference = rows(shown.image, 5)
    np.testing.assert_array_equal(clean, adversarial)
    assert set(difference.ravel().tolist()) == {128}


def test_autoattacks_images_are_shown_too():
    shown = painter(experiment("apgd-ce3"), NET, Split(IMAGES, LABELS))(WEIGHTS)
    clean, adversarial, _ = rows(shown.image, 5).astype(int)
    assert 0 < np.abs(adversarial - clean).max() <= 26


def test_of_other_channels_the_first_is_shown():
    assert picture(np.zeros((2, 4, 4, 5)), np.ones((2, 4, 4, 5))).shape == (16, 11, 1)
