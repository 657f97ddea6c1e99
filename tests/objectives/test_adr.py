import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import Aux, Variables
from piat_jax.objectives import ADR, AWP, PGDAT, TRADES, Mix, Standard
from piat_jax.objectives.adr import annealed, rectified
from piat_jax.objectives.base import WrapperState
from tests.objectives.numeric import PROBED, check, cross_entropy, divergence, logits, probe
from tests.objectives.stub import (
    CLEAN,
    CONTEXT,
    CURVED,
    IMAGES,
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

AVERAGE = Variables({"w": PARAMS["w"][:, ::-1] / 3, "scale": jnp.array([0.6, 1.2])}, {"mean": jnp.array([0.2, 0.4])})
AVERAGED = WrapperState(AVERAGE, ())
OF_AVERAGE = logits(IMAGES, np.asarray(AVERAGE.params["w"], np.float64), train=False, mean=[0.2, 0.4], scale=[0.6, 1.2])
ONE_HOT = np.eye(3)[Y]


def target(temperature, share):
    p = softmax(OF_AVERAGE / temperature)
    own = np.clip(share - (p.max(1) - p[np.arange(4), Y]), 0, 1)[:, None]
    return own * p + (1 - own) * ONE_HOT


def at(step, epochs=10, steps=20):
    return CONTEXT._replace(step=jnp.int32(step), epochs=jnp.int32(epochs), steps_per_epoch=jnp.int32(steps))


def crafted(objective, context, state=AVERAGED):
    return jax.jit(objective.perturb)(Variables(PARAMS, STATE), state, CLEAN, context)


def test_temperature_and_share_go_along_half_a_cosine():
    steps = np.arange(0, 201, 20)
    expected = 0.95 + 0.5 * (0.7 - 0.95) * (1 + np.cos(np.pi * steps / 200))
    np.testing.assert_allclose([annealed((0.7, 0.95), at(step)) for step in steps], expected, rtol=1e-5)
    np.testing.assert_allclose([annealed((2.5, 2.0), at(step)) for step in (0, 100, 200, 300)], [2.5, 2.25, 2, 2])


@pytest.mark.parametrize(("step", "temperature", "share"), [(0, 2.5, 0.7), (100, 2.25, 0.825), (200, 2.0, 0.95)])
def test_the_batch_is_told_the_rectified_labels(step, temperature, share):
    batch = crafted(ADR(make(PGDAT)), at(step))
    np.testing.assert_allclose(batch.clean.targets, target(temperature, share), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(batch.clean.labels, Y)
    kept = target(temperature, share)[np.arange(4), Y].mean()
    np.testing.assert_allclose(batch.metrics["rectified_label"], kept, rtol=1e-5)


def test_a_share_below_0_leaves_the_label_and_one_above_1_the_prediction():
    z = jnp.array([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    found = rectified(z, jnp.array([1, 0]), 1.0, 0.5)
    assert found[0].tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose(found[1], 0.5 * softmax(np.asarray(z[1])) + [0.5, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(found, axis=1), 1.0, rtol=1e-6)


def test_loss_and_gradient_are_the_methods_with_these_targets():
    soft = target(2.25, 0.825)
    batch = CURVED._replace(clean=CLEAN._replace(targets=jnp.asarray(soft, jnp.float32)))

    def entropy(z):
        return -np.sum(soft * np.log(softmax(z)), axis=1)

    check(ADR(make(PGDAT)), lambda clean, adversarial, w: entropy(adversarial), batch=batch)
    check(
        ADR(make(TRADES)),
        lambda clean, adversarial, w: entropy(clean) + 6 * divergence(softmax(clean), softmax(adversarial)),
        batch=batch,
    )


def test_the_attack_is_told_them_too():
    batch = crafted(ADR(make(PGDAT, attack=probe)), at(100))
    found = np.asarray(batch.images - IMAGES)[:, 0, 0, 0]
    np.testing.assert_allclose(found, -(target(2.25, 0.825) * np.log(softmax(PROBED))).sum(1), rtol=1e-3)
    assert not np.allclose(found, cross_entropy(PROBED, Y), rtol=0.05)


def test_mixed_labels_are_rectified_as_they_are():
    soft = 0.7 * jnp.asarray(ONE_HOT) + 0.3 * jnp.asarray(ONE_HOT[::-1])
    z = jnp.asarray(OF_AVERAGE, jnp.float32)
    p = softmax(OF_AVERAGE)
    own = np.clip(0.7 - (p.max(1) - (p * np.asarray(soft)).sum(1)), 0, 1)[:, None]
    np.testing.assert_allclose(rectified(z, soft, 1.0, 0.7), own * p + (1 - own) * np.asarray(soft), rtol=1e-4)
    mixed = jax.jit(perturb)(Mix(ADR(make(PGDAT)), prob=1.0))
    np.testing.assert_allclose(jnp.sum(mixed.clean.targets, axis=1), 1.0, rtol=1e-5)


def test_the_average_over_two_steps():
    objective, aux = ADR(make(PGDAT), decay=0.9), Aux(STATE, {})
    state = state_of(objective)
    jax.tree.map(np.testing.assert_array_equal, tuple(state.own), (PARAMS, STATE))
    moved = Variables(jax.tree.map(lambda x: x + 1, PARAMS), jax.tree.map(lambda x: x - 2, STATE))
    for _ in range(2):
        state = objective.after_epoch(objective.after_step(moved, state, CURVED, aux, CONTEXT), CONTEXT)
    expected = jax.tree.map(lambda old, new: 0.81 * old + 0.19 * new, Variables(PARAMS, STATE), moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.own, expected)


def test_what_is_evaluated():
    now = Variables(PARAMS, STATE)
    assert ADR(make(PGDAT)).eval_variables(now, AVERAGED) is now
    assert ADR(make(PGDAT), average=True).eval_variables(now, AVERAGED) is AVERAGE


def test_the_average_has_buffers_of_its_own_and_no_gradient():
    own = state_of(ADR(make(PGDAT))).own
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((own, PARAMS, STATE))]
    assert len(set(pointers)) == len(pointers)

    def told(average):
        return jnp.sum(ADR(make(PGDAT)).perturb(Variables(PARAMS, STATE), average, CLEAN, at(9)).clean.targets[:, 0])

    for leaf in jax.tree.leaves(jax.jit(jax.grad(told))(AVERAGED)):
        assert not np.any(leaf)


def test_forwards_are_those_inside():
    for method, order in ((PGDAT, "a"), (TRADES, "cac"), (Standard, "c")):
        assert train_forwards(value, ADR(make(method))) == order
    assert train_forwards(perturb, AWP(ADR(make(PGDAT)))) == ""


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    average = WrapperState(Variables(params, STATE), ())
    batch = crafted(ADR(make(PGDAT)), at(50), average)
    assert np.all(np.isfinite(batch.clean.targets))
    assert np.isfinite(value(ADR(make(PGDAT)), params, batch, average)[0])
    assert np.all(np.isfinite(gradient(ADR(make(PGDAT)), params, batch, average)[0]["w"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": (2.0,)}, "temperatures=(2.0,) must be two numbers, the first and last value of the run"),
        ({"temperatures": (2.0, 0.0)}, "temperatures=0.0 must be in (0, inf]"),
        ({"shares": (0.7, 1.5)}, "shares=1.5 must be in [0, 1]"),
        ({"decay": 1.5}, "decay=1.5 must be in [0, 1]"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        ADR(make(PGDAT), **options)
