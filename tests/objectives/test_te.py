import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import AdversarialBatch, Aux, Variables
from piat_jax.objectives import PGDAT, TE, TRADES, Consistency
from piat_jax.objectives.base import WrapperState
from piat_jax.objectives.te import Ensemble, Ensembled
from tests.objectives.numeric import PROBED, UNMOVED, check, cross_entropy, divergence, loss_of_attack, probe
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

RNG = np.random.default_rng(3)
TARGET = softmax(RNG.normal(size=(4, 3)))


def te(method=PGDAT, examples=6, **options):
    return TE(make(method), examples=examples, **options)


def at(epoch, epochs=200):
    return CONTEXT._replace(epoch=jnp.int32(epoch), epochs=jnp.int32(epochs))


BATCH = te().hand(AdversarialBatch(CLEAN, OTHER), Ensembled(jnp.zeros((4, 3)), jnp.asarray(TARGET, jnp.float32)))


def by_the_code(epoch, start=90, end=150):
    """The weight of a 1-based epoch of 200."""
    if epoch < start:
        return 0.0
    return 300 if epoch > end else 300 * np.exp(-5 * (1 - (epoch - start) / (end - start)) ** 2)


def test_the_weight_grows_as_in_the_code():
    weights = [float(te().weight_now(at(epoch - 1))) for epoch in range(1, 201)]
    np.testing.assert_allclose(weights, [by_the_code(epoch) for epoch in range(1, 201)], rtol=1e-4, atol=1e-4)
    # With as many epochs it keeps its shares.
    np.testing.assert_allclose(te().weight_now(at(60, 100)), by_the_code(121), rtol=1e-4)


@pytest.mark.parametrize(("epoch", "weight"), [(10, 0.0), (120, by_the_code(121)), (180, 300.0)])
def test_loss_and_gradient(epoch, weight):
    def squared(z):
        return weight * np.mean((softmax(z) - TARGET) ** 2, axis=1)

    check(
        te(),
        lambda clean, adversarial, w: cross_entropy(adversarial, Y) + squared(adversarial),
        batch=BATCH,
        context=at(epoch),
    )
    check(
        te(TRADES),
        lambda clean, adversarial, w: (
            cross_entropy(clean, Y) + 6 * divergence(softmax(clean), softmax(adversarial)) + squared(clean)
        ),
        batch=BATCH,
        context=at(epoch),
    )


OLD = 0.3 * softmax(RNG.normal(size=(6, 3)))
REMEMBERED = WrapperState(Ensemble(jnp.asarray(OLD, jnp.float32)), ())
P = softmax(UNMOVED)


def crafted(objective, context, state=REMEMBERED):
    return jax.jit(objective.perturb)(Variables(PARAMS, STATE), state, CLEAN, context)


def test_predictions_are_ensembled_before_the_attack():
    objective = te(momentum=0.8)
    rows = objective.handed(crafted(objective, at(150)))
    expected = 0.8 * OLD[:4] + 0.2 * P
    np.testing.assert_allclose(rows.predictions, expected, rtol=1e-4)
    np.testing.assert_allclose(rows.target, expected / expected.sum(1, keepdims=True), rtol=1e-4)
    before = objective.handed(crafted(objective, at(10)))
    np.testing.assert_allclose(before.predictions, OLD[:4], rtol=1e-6)
    assert not np.any(before.target)


@pytest.mark.parametrize(("method", "share"), [(PGDAT, 1.0), (TRADES, 1 / 6)])
def test_the_attack_maximises_the_term_too(method, share):
    objective = TE(make(method, attack=probe), examples=6)
    for epoch in (10, 150):
        found = np.asarray(crafted(objective, at(epoch)).images - IMAGES)[:, 0, 0, 0]
        mixed = 0.9 * OLD[:4] + 0.1 * P
        term = np.mean((softmax(PROBED) - mixed / mixed.sum(1, keepdims=True)) ** 2, axis=1)
        own = cross_entropy(PROBED, Y) if method is PGDAT else divergence(P, softmax(PROBED))
        np.testing.assert_allclose(found, own + (share * 300 * term if epoch == 150 else 0), rtol=1e-3, atol=1e-5)
    inside = loss_of_attack(make(method, attack=probe))
    np.testing.assert_allclose(np.asarray(crafted(objective, at(10)).images - IMAGES)[:, 0, 0, 0], inside, atol=1e-6)


def test_rows_are_remembered_over_two_epochs():
    objective, aux = te(), Aux(STATE, {})
    state = state_of(objective)
    assert state.own.predictions.shape == (6, 3)
    seen = np.zeros((6, 3))
    order = np.array([5, 0, 3, 1])
    batch = CLEAN._replace(indices=jnp.asarray(order))
    for epoch in (150, 151):
        adversarial = objective.perturb(Variables(PARAMS, STATE), state, batch, at(epoch))
        state = objective.after_step(Variables(PARAMS, STATE), state, adversarial, aux, at(epoch))
        state = objective.after_epoch(state, at(epoch))
        seen[order] = 0.9 * seen[order] + 0.1 * P
        np.testing.assert_allclose(state.own.predictions, seen, rtol=1e-4)
    # An example that was seen once has its prediction for target.
    first = objective.handed(objective.perturb(Variables(PARAMS, STATE), state_of(objective), batch, at(150)))
    np.testing.assert_allclose(first.target, P, rtol=1e-4)


def test_views_have_rows_of_their_own():
    assert state_of(TE(Consistency(make(PGDAT)), examples=6)).own.predictions.shape == (12, 3)


def test_an_index_beyond_the_examples_makes_the_loss_nan():
    for examples, finite in ((4, True), (3, False)):
        objective = te(examples=examples)
        batch = crafted(objective, at(150), state_of(objective))
        assert np.isfinite(value(objective, batch=batch, context=at(150))[0]) == finite


def test_nothing_of_the_ensemble_is_differentiated():
    objective = te(start=0.0)

    def made(params):
        rows = objective.handed(perturb(objective, params, context=at(150)))
        return jnp.sum(rows.target[:, 0])

    assert not np.any(jax.jit(jax.grad(made))(PARAMS)["w"])


def test_forwards_are_those_inside():
    for method, order in ((PGDAT, "a"), (TRADES, "cac")):
        assert train_forwards(value, te(method), PARAMS, BATCH) == order
    assert te(TRADES).forwards == make(TRADES).forwards


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    assert np.isfinite(value(te(), params, BATCH, context=at(150))[0])
    assert np.all(np.isfinite(gradient(te(), params, BATCH, context=at(150))[0]["w"]))


def no_loss(logits_fn, images, labels, *, key, indices=None, eps=0.1):
    return images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "examples=0 must be at least 1"),
        ({"momentum": 1.5}, "momentum=1.5 must be in [0, 1]"),
        ({"start": 0.5, "full": 0.25}, "full=0.25 is before start=0.5; give a later share of the run"),
        ({"full": 149.0}, "full=149.0 must be a share of the run"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        te(**options)


def test_an_attack_without_a_loss_is_refused():
    with pytest.raises(InputError, match="TE sets the attack's 'loss', which this attack does not take"):
        TE(make(PGDAT, attack=no_loss), examples=4)
