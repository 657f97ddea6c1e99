import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import AdversarialBatch, Aux, Variables
from piat_jax.objectives import ECAS, MMA, PGDAT, TRADES
from piat_jax.objectives.mma import Margins, Searched, boundary, soft_margin
from tests.objectives.numeric import check, cross_entropy, divergence, logits
from tests.objectives.stub import (
    CLEAN,
    CONTEXT,
    IMAGES,
    OTHER,
    PARAMS,
    STATE,
    Y,
    gradient,
    make,
    perturb,
    softmax,
    state_of,
    train_forwards,
    value,
)

# The labels that the network has right, but for the last example.
RIGHT = np.argmax(logits(IMAGES, train=False), axis=-1)
LABELS = np.where(np.arange(4) == 3, (RIGHT + 1) % 3, RIGHT)
SEEN = CLEAN._replace(labels=jnp.asarray(LABELS))


def mma(method=PGDAT, **options):
    return MMA(make(method), **{"examples": 6, "eps": 0.05, **options})


def margin(z, labels):
    others = np.where(np.arange(3)[None] == labels[:, None], -np.inf, z)
    return np.log(np.exp(others).sum(1)) - z[np.arange(len(z)), labels]


def handed(within):
    batch = AdversarialBatch(CLEAN, OTHER)
    return mma().hand(batch, Searched(jnp.zeros(4), jnp.asarray(within)))


@pytest.mark.parametrize("share", [1 / 3, 0.0, 0.5, 1.0])
def test_loss_and_gradient(share):
    within = np.array([True, False, True, True])

    def loss(clean, adversarial, w):
        return share * cross_entropy(clean, Y) + (1 - share) * np.where(within, cross_entropy(adversarial, Y), 0.0)

    check(mma(clean_weight=share), loss, batch=handed(within))


def test_around_trades_its_divergence_is_left_out_beyond_the_hinge():
    within = np.array([True, False, False, True])

    def loss(clean, adversarial, w):
        kl = np.where(within, 6 * divergence(softmax(clean), softmax(adversarial)), 0.0)
        return cross_entropy(clean, Y) / 3 + 2 / 3 * (cross_entropy(clean, Y) + kl)

    check(mma(TRADES), loss, batch=handed(within))


def test_soft_margin_is_that_of_the_formula_and_of_the_most_probable_class():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    np.testing.assert_allclose(soft_margin(z, SEEN.labels), margin(np.asarray(z, np.float64), LABELS), rtol=1e-4)
    np.testing.assert_allclose(soft_margin(z, jax.nn.one_hot(SEEN.labels, 3) * 0.6 + 0.2), soft_margin(z, SEEN.labels))


def crafted(objective, state=None, context=CONTEXT):
    state = state_of(objective) if state is None else state
    return jax.jit(objective.perturb)(Variables(PARAMS, STATE), state, SEEN, context)


def test_examples_lie_on_the_boundary_of_the_soft_margin():
    objective = mma(hinge=40.0, searches=30)
    batch = crafted(objective)
    found = objective.handed(batch)
    at_clean = margin(logits(IMAGES, train=False), LABELS)
    assert np.all((at_clean < 0) == [True, True, True, False])
    inside = (batch.images > 1e-6) & (batch.images < 1 - 1e-6)
    on = np.abs(margin(logits(batch.images, train=False), LABELS))
    # Where the box or the farthest radius did not come first.
    reached = np.all(inside, axis=(1, 2, 3)) & (found.eps < 0.99 * 1.05 * 40 * 0.05)
    assert np.sum(reached[:3]) >= 1
    assert np.all(on[:3][reached[:3]] < 1e-2)
    np.testing.assert_array_equal(batch.images[3], IMAGES[3])
    assert found.eps[3] == 0.0
    assert found.within[3]


def test_the_boundary_by_bisection():
    """In one dimension, where it is known: logits (1/2 - x, 0), label 0, so the margin is 0 at x = 1/2."""

    def logits_fn(images):
        x = images.reshape(-1)
        return jnp.stack([0.5 - x, jnp.zeros_like(x)], axis=-1)

    images = jnp.array([0.1, 0.45, 0.2]).reshape(3, 1, 1, 1)
    batch = CLEAN._replace(images=images, labels=jnp.zeros(3, jnp.int32), indices=jnp.arange(3))
    direction = jnp.array([1.0, 1.0, -1.0]).reshape(3, 1, 1, 1)
    begin, farthest = jnp.full(3, 0.1), jnp.full(3, 0.6)
    found = boundary(logits_fn, batch, direction, begin, farthest, 20)
    np.testing.assert_allclose(found, [0.4, 0.05, 0.6], atol=1e-5)
    # One search looks at `begin`; the second where that has left it.
    np.testing.assert_allclose(boundary(logits_fn, batch, direction, begin, farthest, 1), [0.35, 0.05, 0.35], rtol=1e-6)


SHOWN = []


def shown(logits_fn, images, labels, *, key, indices=None, loss=None, eps=0.1, step_size=0.05, start_eps=None, steps=4):
    """An attack that shows what it is given."""
    SHOWN.append((eps, step_size, start_eps, loss(logits_fn(images), labels)))
    return images + eps.reshape(-1, 1, 1, 1)


def test_the_attack_has_the_radius_of_the_time_before_and_the_soft_margin():
    objective = MMA(make(PGDAT, attack=shown), examples=6, eps=0.05, least=0.5)
    state = state_of(objective)._replace(own=Margins(jnp.array([0.04, 0.0, 0.01, 0.0, 0.0, 0.0])))
    SHOWN.clear()
    objective.perturb(Variables(PARAMS, STATE), state, SEEN, CONTEXT)
    eps, step_size, start_eps, told = SHOWN[0]
    np.testing.assert_allclose(eps, [0.04, 0.025, 0.025, 0.025], rtol=1e-6)
    np.testing.assert_allclose(step_size, 2.5 * np.asarray(eps) / 4, rtol=1e-6)
    np.testing.assert_array_equal(start_eps, eps)
    np.testing.assert_allclose(told, margin(logits(IMAGES, train=False), LABELS), rtol=1e-4)


def test_distances_are_remembered_over_two_epochs():
    objective, aux = mma(), Aux(STATE, {})
    state = state_of(objective)
    assert state.own.eps.shape == (6,)
    batch = crafted(objective)
    order = jnp.array([5, 0, 3, 1])
    moved = batch._replace(clean=batch.clean._replace(indices=order))
    after = objective.after_step(Variables(PARAMS, STATE), state, moved, aux, CONTEXT)
    found = objective.handed(batch).eps
    np.testing.assert_array_equal(after.own.eps[order], found)
    assert not np.any(after.own.eps[jnp.array([2, 4])])
    again = objective.after_epoch(after, CONTEXT)
    second = objective.handed(batch)._replace(eps=found + 1)
    third = objective.after_step(Variables(PARAMS, STATE), again, objective.hand(moved, second), aux, CONTEXT)
    np.testing.assert_array_equal(third.own.eps[order], found + 1)


def test_beyond_the_hinge_an_example_does_not_count():
    near, far = (mma(hinge=hinge) for hinge in (1e-4, 40.0))
    assert np.asarray(near.handed(crafted(near)).within).tolist() == [False, False, False, True]
    assert np.all(far.handed(crafted(far)).within == (far.handed(crafted(far)).eps < 2.0))


def test_an_index_beyond_the_examples_makes_the_loss_nan():
    for objective, finite in ((mma(examples=4), True), (mma(examples=3), False)):
        batch = crafted(objective)
        loss, _ = value(objective, batch=batch, state=state_of(objective))
        assert np.isfinite(loss) == finite


def test_a_radius_from_outside_is_the_unit():
    objective = mma()
    inside = objective.handed(crafted(objective, context=CONTEXT.with_attack(eps=jnp.full(4, 1e-5))))
    assert np.all(inside.eps <= 1.05 * 4 * 1e-5 + 1e-9)


def test_forwards_in_order():
    batch = handed([True] * 4)
    assert train_forwards(value, mma(), PARAMS, batch) == "ca"
    assert mma(TRADES).forwards == ("clean", "adversarial", "clean")
    assert train_forwards(value, mma(TRADES), PARAMS, batch) == "cac"
    objective = mma()
    assert train_forwards(lambda: perturb(objective)) == ""


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params, objective = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}, mma()
    batch = jax.jit(perturb)(objective, params)
    assert np.all(np.isfinite(batch.images))
    assert np.isfinite(value(objective, params, batch)[0])
    assert np.all(np.isfinite(gradient(objective, params, batch)[0]["w"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "examples=0 must be at least 1"),
        ({"searches": 0}, "searches=0 must be at least 1"),
        ({"clean_weight": 1.5}, "clean_weight=1.5 must be in [0, 1]"),
        ({"least": 0.0}, "least=0.0 must be at least 1e-06"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        mma(**options)


def test_another_that_chooses_radii_is_refused():
    with pytest.raises(InputError, match="MMA and ECAS both choose radius and step size of every example"):
        MMA(ECAS(make(PGDAT)), examples=4)
