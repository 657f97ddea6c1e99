import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.types import Aux, Variables
from piat_jax.objectives import PGDAT, TRADES, WrapperState
from piat_jax.objectives.awp import AWP
from piat_jax.objectives.cfa import CFA
from tests.objectives.stub import (
    BATCH,
    CE_CLEAN,
    CLEAN,
    CONTEXT,
    CURVED,
    IMAGES,
    KL,
    LABELS,
    PA,
    PARAMS,
    ROWS,
    STATE,
    P,
    Y,
    make,
    perturb,
    state_of,
    train_forwards,
    value,
)

LATE = CONTEXT._replace(epoch=jnp.int32(1), epochs=jnp.int32(20))  # start = 10/200 of 20 epochs
EARLY = LATE._replace(epoch=jnp.int32(0))
RATE = jnp.array([0.2, 0.8, 0.5])
VARIABLES = Variables(PARAMS, STATE)


def show_radius(logits_fn, images, labels, *, key, indices=None, eps=0.0, loss=None):
    """An attack that moves each image by its whole radius."""
    return images + jnp.broadcast_to(eps, labels.shape)[:, None, None, None]


def calibrated(objective, rate=RATE, counted=True):
    state = state_of(objective)
    return state._replace(own=state.own._replace(rate=rate, counted=jnp.full(3, counted)))


def radii(objective, state, context=LATE):
    return (objective.perturb(VARIABLES, state, CLEAN, context).images - IMAGES)[:, 0, 0, 0]


def test_radii_follow_the_rates_of_the_classes():
    objective = CFA(make(PGDAT, attack=bind(show_radius)))
    expected = np.array([0.7, 1.3, 1.0, 0.7]) * 8 / 255  # of the labels 0, 1, 2, 0
    np.testing.assert_allclose(radii(objective, calibrated(objective)), expected, rtol=1e-5)
    # Until the start, and for what is not counted yet, it is eps.
    for state, context in ((calibrated(objective), EARLY), (state_of(objective), LATE)):
        np.testing.assert_allclose(radii(objective, state, context), np.full(4, 8 / 255), rtol=1e-5)
    # A radius from outside takes the place of eps.
    outside = LATE._replace(attack={"eps": jnp.array([0.1, 0.2, 0.3, 0.4])})
    np.testing.assert_allclose(radii(objective, calibrated(objective), outside), [0.07, 0.26, 0.3, 0.28], rtol=1e-5)


def weighted(b):
    ce, kl = -np.log(P[ROWS, Y]), (P * np.log(P / PA)).sum(1)
    return np.mean((1 - b[Y]) * ce + b[Y] * kl)


def test_loss_around_trades():
    objective = CFA(make(TRADES), lambda1=0.9)
    b = (0.5 + np.asarray(RATE)) * 6 / (1 + (0.5 + np.asarray(RATE)) * 6)
    assert b[1] == pytest.approx(7.8 / 8.8)
    for state, context, expected in (
        (calibrated(objective), LATE, weighted(b)),
        (calibrated(objective), EARLY, weighted(np.full(3, 6 / 7))),
        (state_of(objective), LATE, (CE_CLEAN + 6 * KL) / 7),
    ):
        np.testing.assert_allclose(value(objective, batch=CURVED, state=state, context=context)[0], expected, rtol=1e-4)


def test_trades_is_found_within_another_wrapper():
    inside, outside = CFA(AWP(make(TRADES))), AWP(CFA(make(TRADES)))
    state = calibrated(inside)
    nested = WrapperState((), WrapperState(state.own, ()))
    ours, theirs = (value(o, batch=CURVED, state=s, context=LATE)[0] for o, s in ((inside, state), (outside, nested)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert abs(ours - (CE_CLEAN + 6 * KL) / 7) > 1e-3


def test_with_unit_factors_it_is_the_method_inside():
    inner = make(PGDAT)
    objective = CFA(inner, lambda1=1.0, eps=0.1)
    run = jax.jit(lambda objective, state: objective.perturb(VARIABLES, state, CLEAN, LATE).images)
    images = run(objective, calibrated(objective, jnp.zeros(3)))
    np.testing.assert_array_equal(images, perturb(inner, context=LATE).images)
    assert np.any(images != run(objective, calibrated(objective)))


def test_rates_are_counted_by_class_over_the_epoch():
    objective = CFA(make(PGDAT))
    after_step, state = jax.jit(objective.after_step), state_of(objective)
    right = jax.nn.one_hot(LABELS, 3)
    for logits in (right, right.at[0].set(jnp.array([0.0, 1.0, 0.0]))):  # one of four zeros is wrong
        state = after_step(VARIABLES, state, BATCH, Aux({}, {}, {"adversarial": logits}), EARLY)
    assert state.own.robust.tolist() == [3, 2, 2]
    assert state.own.total.tolist() == [4, 2, 2]
    state = objective.after_epoch(state, EARLY)
    np.testing.assert_array_equal(state.own.rate, [0.75, 1.0, 1.0])
    assert state.own.counted.tolist() == [True] * 3
    # An epoch without class 2 leaves its rate; the counts began anew.
    other = Aux({}, {}, {"adversarial": jax.nn.one_hot((LABELS + 2) % 3, 3)})
    two = BATCH._replace(clean=CLEAN._replace(labels=jnp.array([0, 1, 1, 0])))
    state = objective.after_epoch(after_step(VARIABLES, state, two, other, LATE), LATE)
    np.testing.assert_array_equal(state.own.rate, [0.0, 0.5, 1.0])


def test_counts_come_from_the_logits_of_the_step():
    objective = CFA(make(TRADES))
    _, aux = value(objective, batch=CURVED)
    state = objective.after_step(VARIABLES, state_of(objective), CURVED, aux, EARLY)
    hits = PA.argmax(1) == Y
    assert state.own.robust.tolist() == [int(hits[k == Y].sum()) for k in range(3)]


@pytest.mark.parametrize(("inner", "order"), [(PGDAT, "a"), (TRADES, "cac")])
def test_train_forwards_and_crafting(inner, order):
    objective = CFA(make(inner))
    assert train_forwards(value, objective) == order
    assert train_forwards(perturb, objective) == ""
    craft = jax.jit(jax.grad(lambda p: jnp.sum(perturb(objective, p).images ** 2)))
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, jnp.zeros_like(g)), craft(PARAMS))


def test_rates_and_epochs_do_not_recompile():
    traces = []

    @jax.jit
    def run(objective, state, context):
        traces.append(None)
        return radii(objective, state, context)

    objective = CFA(make(PGDAT, attack=bind(show_radius)))
    for state, context, lambda1 in ((calibrated(objective), LATE, 0.5), (state_of(objective), EARLY, 0.3)):
        run(CFA(objective.inner, lambda1=lambda1), state, context)
    assert len(traces) == 1


def test_bad_arguments_are_refused():
    for options, message in (
        ({"lambda1": -0.5}, "lambda1=-0.5 must be at least 0"),
        ({"eps": -1.0}, "eps=-1.0 must be at least 0"),
        ({"start": 10.0}, "start=10.0 must be a share of the run"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            CFA(make(PGDAT), **options)
