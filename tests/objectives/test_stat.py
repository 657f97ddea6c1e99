import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.attacks import bind, pgd
from piat_jax.core.checks import InputError
from piat_jax.core.types import AdversarialBatch
from piat_jax.objectives import AWP, GAIRAT, STAT, TE, TRADES
from piat_jax.objectives.stat import COLLABORATIVE, extremes, pick, squeeze
from tests.objectives.numeric import check, cross_entropy, divergence, logits
from tests.objectives.stub import (
    CLEAN,
    CONTEXT,
    IMAGES,
    MODEL,
    OTHER,
    PARAMS,
    STATE,
    Y,
    gradient,
    make,
    perturb,
    softmax,
    train_forwards,
    value,
)

NEAR = IMAGES + 0.1 * jnp.asarray(np.random.default_rng(4).normal(size=IMAGES.shape), jnp.float32)
BATCH = AdversarialBatch(CLEAN, OTHER, {COLLABORATIVE: NEAR})


def of_labels(z):
    return softmax(z)[np.arange(4), Y]


def chosen(which, *choices):
    return np.stack([choices[number][row] for row, number in enumerate(which)])


@pytest.mark.parametrize("beta", [6.0, 2.0, 0.0])
def test_loss_and_gradient(beta):
    def places(z):
        probabilities = np.stack([of_labels(each) for each in z])
        return probabilities.argmax(0), probabilities.argmin(0)

    at = [logits(images) for images in (IMAGES, NEAR, OTHER)]
    lower, upper = places(at)
    assert len({*lower, *upper}) == 3
    high, low = softmax(chosen(upper, *at)), softmax(chosen(lower, *at))

    def loss(clean, adversarial, w):
        z = [clean, logits(NEAR, w), adversarial]
        u, v = softmax(chosen(upper, *z)), softmax(chosen(lower, *z))
        # `high` and `low` stay at the weights of the test: they are constants to the gradient.
        return cross_entropy(clean, Y) + beta * (divergence(low, u) + divergence(high, v)) / 2

    check(make(STAT, beta=beta), loss, batch=BATCH)


def test_extremes_and_what_is_picked():
    z = [jnp.array([[0.0, 0.0], [3.0, 0.0]]), jnp.array([[1.0, 0.0], [2.0, 0.0]]), jnp.array([[-1.0, 0.0], [9.0, 0.0]])]
    highest, lowest = extremes(*z, jnp.array([0, 1]))
    assert highest.tolist() == [1, 1]
    assert lowest.tolist() == [2, 2]
    assert pick(lowest, *z).tolist() == [[-1.0, 0.0], [9.0, 0.0]]


def test_one_step_goes_up_the_distance_from_where_each_point_belongs():
    """In float64, from the points that the attack starts from: those of an attack of no step."""
    options = {"eps": 0.1, "start": "uniform"}
    halves = []
    for step in (0.0, 0.02):
        objective = make(STAT, attack=bind(pgd, steps=1, step_size=step, **options))
        crafted = jax.jit(perturb)(objective)
        halves.append((crafted.extra[COLLABORATIVE], crafted.images))
    # Without a step the points are already where they belong.
    (low, high), (lower, higher) = halves
    probabilities = [of_labels(logits(x, train=False)) for x in (low, IMAGES, high)]
    assert np.all(probabilities[0] >= np.max(probabilities, axis=0) - 1e-7)
    assert np.all(probabilities[2] <= np.min(probabilities, axis=0) + 1e-7)

    def logits_of(images):
        return MODEL.apply(PARAMS, STATE, images, train=False)[0]

    def distance(low, high):
        return jnp.sum(squeeze(logits_of(high), logits_of(low)))

    for number, (start, end) in enumerate(((low, lower), (high, higher))):
        slope = jax.grad(distance, argnums=number)(low, high)
        expected = np.clip(np.clip(start + 0.02 * np.sign(slope), IMAGES - 0.1, IMAGES + 0.1), 0, 1)
        np.testing.assert_allclose(end, expected, atol=1e-6)


def test_both_images_stay_in_the_ball_and_start_apart():
    crafted = jax.jit(perturb)(make(STAT))
    for images in (crafted.images, crafted.extra[COLLABORATIVE]):
        assert np.all(np.abs(images - IMAGES) <= 0.1 + 1e-6)
    # Were there one start for both, one of the two would be the clean image where no step is taken.
    still = jax.jit(perturb)(make(STAT, attack=bind(pgd, eps=0.1, steps=1, step_size=0.0)))
    moved = [np.any(x != IMAGES, axis=(1, 2, 3)) for x in (still.images, still.extra[COLLABORATIVE])]
    assert np.any(moved[0] & moved[1])


def test_radii_of_each_example_reach_both_images():
    context = CONTEXT.with_attack(eps=jnp.array([0.0, 0.1, 0.02, 0.05]))
    crafted = jax.jit(perturb)(make(STAT), context=context)
    for images in (crafted.images, crafted.extra[COLLABORATIVE]):
        far = np.abs(images - IMAGES).reshape(4, -1).max(1)
        assert np.all(far <= np.array([0.0, 0.1, 0.02, 0.05]) + 1e-6)
        assert far[1] > 0.05


def test_crafting_is_a_constant():
    slope = jax.jit(jax.grad(lambda params: jnp.sum(perturb(make(STAT), params).images)))(PARAMS)
    assert not np.any(slope["w"])


def test_forwards_leave_no_statistics_of_the_collaborative_images():
    assert make(STAT).forwards == ("clean", "adversarial")
    assert train_forwards(value, make(STAT), PARAMS, BATCH) == "cac"
    one, other = (value(o, batch=BATCH)[1].model_state["mean"] for o in (make(STAT), make(TRADES, clean_forwards=1)))
    np.testing.assert_array_equal(one, other)
    assert train_forwards(perturb, make(STAT)) == ""


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    assert np.isfinite(value(make(STAT), params, BATCH)[0])
    assert np.all(np.isfinite(gradient(make(STAT), params, BATCH)[0]["w"]))
    assert np.all(np.isfinite(jax.jit(perturb)(make(STAT), params).images))


def test_what_follows_one_image_of_each_example_is_refused():
    for around in (GAIRAT(make(STAT)), TE(make(STAT), examples=4, start=0.0)):
        with pytest.raises(InputError, match="STAT crafts two images of each example; leave out GAIRAT and TE"):
            perturb(around)
    assert np.isfinite(value(AWP(make(STAT)), batch=BATCH)[0])


def test_a_negative_weight_is_refused():
    with pytest.raises(InputError, match=re.escape("beta=-1.0 must be at least 0")):
        make(STAT, beta=-1.0)
