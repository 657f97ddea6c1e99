"""The stub's loss and gradient in NumPy, float64: what an objective's formula must give."""

import jax
import numpy as np

from piat_jax import losses
from tests.objectives.stub import CURVED, IMAGES, OTHER, PARAMS, STATE, gradient, perturb, softmax, state_of, value

W = np.asarray(PARAMS["w"], np.float64)
SCALE = np.asarray(PARAMS["scale"], np.float64)
MEAN = np.asarray(STATE["mean"], np.float64)


def logits(images, w=W, *, train=True, mean=MEAN, scale=SCALE):
    """The stub's logits; in evaluation mode with the running mean."""
    x = np.asarray(images, np.float64).reshape(len(images), -1)
    return (x - (x.mean(0) if train else mean)) * scale @ w


def log_softmax(z):
    return np.log(softmax(z))


def cross_entropy(z, labels):
    return -log_softmax(z)[np.arange(len(z)), np.asarray(labels)]


def divergence(p, q):
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


def slope(loss, w=W, step=1e-6):
    """The gradient of `loss(w)` by central differences."""
    result = np.zeros_like(w)
    for place in np.ndindex(w.shape):
        ends = []
        for sign in (1, -1):
            moved = w.copy()
            moved[place] += sign * step
            ends.append(loss(moved))
        result[place] = (ends[0] - ends[1]) / (2 * step)
    return result


def check(objective, loss, batch=CURVED, state=None, context=None, rtol=1e-3):
    """The objective's loss and its gradient by the stub's kernel against those of `loss(clean, adversarial, kernel)`.

    `clean` and `adversarial` are the logits `[B, K]`.
    """
    more = {} if context is None else {"context": context}
    state = state_of(objective) if state is None else state

    def of(w):
        return np.mean(loss(logits(IMAGES, w), logits(OTHER, w), w))

    found, _ = jax.jit(value)(objective, PARAMS, batch, state, **more)
    np.testing.assert_allclose(found, of(W), rtol=1e-4)
    ours = gradient(objective, PARAMS, batch, state, **more)[0]["w"]
    expected = slope(of)
    np.testing.assert_allclose(ours, expected, rtol=rtol, atol=1e-4 * np.abs(expected).max())


SHIFT = 0.05


def probe(logits_fn, images, labels, *, key, indices=None, loss=losses.cross_entropy, eps=0.1, step_size=0.05, steps=3):
    """An attack that adds to each image what its loss is at `images + SHIFT`: `loss_of_attack` takes it out again."""
    return images + loss(logits_fn(images + SHIFT), labels).reshape(-1, 1, 1, 1)


def loss_of_attack(objective, **options):
    """What the method's attack maximises, `[B]`, where its attack is `probe`; `PROBED` are the logits it sees there."""
    return np.asarray(jax.jit(perturb)(objective, **options).images - IMAGES)[:, 0, 0, 0]


PROBED = logits(IMAGES + SHIFT, train=False)
UNMOVED = logits(IMAGES, train=False)
