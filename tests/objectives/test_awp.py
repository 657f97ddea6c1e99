import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.rng import named_key
from piat_jax.objectives import AWP, MART, PGDAT, RPAT, TRADES
from piat_jax.objectives.awp import perturb_kernels
from piat_jax.training import init_state, sgd, train_step
from tests.objectives.stub import (
    CLEAN,
    CONTEXT,
    CURVED,
    IMAGES,
    PARAMS,
    STATE,
    gradient,
    make,
    state_of,
    train_forwards,
    value,
)

LATE = CONTEXT._replace(epoch=jnp.int32(5))
moved = jax.jit(lambda o, context=CONTEXT: o.perturb_weights(PARAMS, STATE, state_of(o), CURVED, context))
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("inner", [PGDAT, TRADES, MART])
def test_kernels_move_by_gamma_along_the_gradient_and_vectors_stay(inner):
    plain = make(inner)
    new, g = moved(AWP(plain, gamma=0.02)), gradient(plain, PARAMS, CURVED)[0]["w"]
    w = np.asarray(PARAMS["w"], np.float64)
    close(new["w"], w + 0.02 * np.linalg.norm(w) * g / np.linalg.norm(g))
    np.testing.assert_array_equal(new["scale"], PARAMS["scale"])
    assert value(plain, new, CURVED)[0] > value(plain, batch=CURVED)[0]


def test_before_its_start_and_at_gamma_0_nothing_moves():
    for same in (moved(AWP(make(PGDAT), start=0.5)), moved(AWP(make(PGDAT), gamma=0.0), LATE)):
        jax.tree.map(np.testing.assert_array_equal, same, PARAMS)
    assert np.any(moved(AWP(make(PGDAT), start=0.5), LATE)["w"] != PARAMS["w"])


def test_a_gradient_of_zero_moves_nothing():
    flat = {**PARAMS, "w": jnp.zeros((2, 3))}
    objective = AWP(make(PGDAT))
    new = objective.perturb_weights(flat, STATE, state_of(objective), CURVED, CONTEXT)
    np.testing.assert_array_equal(new["w"], flat["w"])


def test_tokens_and_positions_are_no_kernels():
    leaf = jnp.ones((1, 2, 3))
    params = {"block": {"kernel": leaf, "bias": leaf[0, 0]}, "cls_token": leaf, "pos_embed": leaf}
    new = perturb_kernels(params, params, 0.1)
    np.testing.assert_allclose(new["block"].pop("kernel"), 1.1 * leaf, rtol=1e-6)
    del params["block"]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, new, params)


def test_train_forwards_in_order():
    for inner, order in ((PGDAT, "a"), (TRADES, "cac"), (MART, "ca")):
        assert train_forwards(value, AWP(make(inner))) == order


def test_it_perturbs_along_the_loss_inside_it():
    # The stub is affine in the images, so RPAT's term is 0; around MART its mid-point forward still counts.
    both = moved(AWP(RPAT(make(TRADES), weight=3.0)))
    close(both["w"], moved(AWP(make(TRADES)))["w"])
    assert AWP(RPAT(make(MART))).forwards == ("clean", "adversarial", "mid")
    close(moved(RPAT(AWP(make(TRADES))))["w"], moved(AWP(make(TRADES)))["w"])


def step(objective, learning_rate, weight_decay=0.0):
    optimizer = sgd(learning_rate, momentum=0.9, weight_decay=weight_decay)
    state = init_state(objective, optimizer, IMAGES[:1], key=jax.random.key(0))
    new, _ = jax.jit(lambda state: train_step(objective, optimizer, state, CLEAN, key=jax.random.key(1), epochs=10))(
        state
    )
    return state, new


@pytest.mark.parametrize("inner", [PGDAT, TRADES])
def test_a_step_without_learning_rate_leaves_the_weights_to_the_bit(inner):
    state, new = step(AWP(make(inner), gamma=0.1), 0.0)
    jax.tree.map(np.testing.assert_array_equal, new.params, state.params)
    assert np.any(new.model_state["mean"] != state.model_state["mean"])


def test_gradient_and_weight_decay_are_taken_at_the_perturbed_weights():
    objective = AWP(make(PGDAT), gamma=0.1)
    state, new = step(objective, 0.01, weight_decay=0.5)
    context = CONTEXT._replace(key=jax.random.fold_in(named_key(jax.random.key(1), "step"), 0))
    batch = objective.perturb(state.variables, state.objective_state, CLEAN, context)
    at = objective.perturb_weights(PARAMS, STATE, state.objective_state, batch, context)
    g = jax.grad(objective.loss, has_aux=True)(at, STATE, state.objective_state, batch, context)[0]
    jax.tree.map(lambda w, v, g, ours: close(ours, w - 0.01 * (g + 0.5 * v)), PARAMS, at, g, new.params)
    # The proxy's forward leaves no statistics: they moved once.
    mean = 0.9 * np.asarray(STATE["mean"]) + 0.1 * np.asarray(batch.images).reshape(4, -1).mean(0)
    close(new.model_state["mean"], mean)


def test_bad_arguments_are_refused():
    for options, message in (
        ({"gamma": -0.1}, "gamma=-0.1 must be at least 0"),
        ({"start": -1.0}, "start=-1.0 must be"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            AWP(make(PGDAT), **options)
