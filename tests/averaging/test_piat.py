import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.averaging import PIAT, RationalWeight, eval_params, interpolated
from piat_jax.core.checks import InputError
from piat_jax.core.types import TrainState, Variables

PARAMS = {"w": jnp.array([4.0, -2.0]), "mu": jnp.array(3.0)}
STATS = {"batch_stats": {"mean": jnp.array([0.0, 1.0])}, "counter": jnp.int32(0)}


def make_state(optimizer=None, params=PARAMS, model_state=STATS):
    optimizer = optimizer or optax.sgd(0.1)
    return TrainState(
        step=jnp.int32(0),
        epoch=jnp.int32(0),
        params=jax.tree.map(jnp.copy, params),
        model_state=jax.tree.map(jnp.copy, model_state),
        opt_state=optimizer.init(params),
        objective_state=(),
        anchor=None,
    )


def train_step(optimizer, state):
    gradient = jax.tree.map(lambda p: 2 * (p - 1.0), state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    return dataclasses.replace(
        state, params=optax.apply_updates(state.params, updates), opt_state=opt_state, step=state.step + 1
    )


def moved(state):
    """The state after an epoch that sent everything to known values."""
    stats = {"batch_stats": {"mean": jnp.array([11.0, 12.0])}, "counter": jnp.int32(7)}
    return dataclasses.replace(state, params=jax.tree.map(lambda p: p + 11.0, state.params), model_state=stats)


def test_weights_statistics_and_anchor_by_hand():
    # lambda_1 = 2/11: of a move by 11, 9 remain.
    state = PIAT()(moved(PIAT().init(make_state())), 1)
    np.testing.assert_allclose(state.params["w"], [13.0, 7.0], rtol=1e-6)
    np.testing.assert_allclose(state.params["mu"], 12.0, rtol=1e-6)
    np.testing.assert_allclose(state.model_state["batch_stats"]["mean"], [9.0, 10.0], rtol=1e-6)
    assert state.model_state["counter"] == 7
    jax.tree.map(np.testing.assert_array_equal, state.anchor, state.variables)


@pytest.mark.parametrize("batch_stats", ["keep", "recompute"])
def test_statistics_of_the_fast_weights(batch_stats):
    state = PIAT(batch_stats=batch_stats)(moved(PIAT().init(make_state())), 1)
    np.testing.assert_array_equal(state.model_state["batch_stats"]["mean"], [11.0, 12.0])
    np.testing.assert_allclose(state.params["w"], [13.0, 7.0], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state.anchor, state.variables)


@pytest.mark.parametrize(("first_epoch", "epoch", "n"), [(1, 1, 1), (1, 120, 120), (0, 1, 0), (0, 120, 119)])
def test_number_of_the_epoch(first_epoch, epoch, n):
    state = moved(PIAT().init(make_state()))
    out = jax.jit(PIAT(first_epoch=first_epoch))(state, jnp.int32(epoch))
    np.testing.assert_allclose(out.params["mu"], 3.0 + 11.0 * 9 / (n + 10), rtol=1e-6)


def test_constant_weight_and_edges():
    for weight, expected in ((0.0, 14.0), (0.25, 11.25), (1.0, 3.0)):
        assert PIAT(weight=weight)(moved(PIAT().init(make_state())), 5).params["mu"] == expected


def test_the_past_fades_as_the_product_of_the_weights():
    # If every epoch ended at the same point, its distance would be the product of lambda_n: 4.5e-13 after 120.
    state = PIAT().init(make_state(params={"w": jnp.array(1.0)}))
    run = jax.jit(PIAT())
    for epoch in range(1, 121):
        state = run(dataclasses.replace(state, params={"w": jnp.array(0.0)}), jnp.int32(epoch))
    expected = math.prod((n + 1) / (n + 10) for n in range(1, 121))
    assert expected == pytest.approx(4.5e-13, rel=0.01)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-4)


@pytest.mark.parametrize("first", [0, 1])
def test_equals_the_optax_transformation(first):
    fast, steps, epochs = optax.sgd(0.05, momentum=0.9), 3, 4
    inside = interpolated(fast, steps, first_epoch=first)
    hook = PIAT(first_epoch=first)
    hooked, chained = hook.init(make_state(fast)), make_state(inside)
    step_hooked = jax.jit(functools.partial(train_step, fast))
    step_chained = jax.jit(functools.partial(train_step, inside))
    end = jax.jit(hook)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6)
    for epoch in range(1, epochs + 1):
        for _ in range(steps):
            hooked, chained = step_hooked(hooked), step_chained(chained)
        hooked = end(hooked, jnp.int32(epoch))
        jax.tree.map(close, hooked.params, chained.params)
        jax.tree.map(close, hooked.anchor.params, eval_params(chained.opt_state, chained.params))
        jax.tree.map(close, hooked.opt_state, chained.opt_state[0])  # momentum kept


def test_returned_state_can_be_donated():
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = jax.jit(functools.partial(train_step, optimizer), donate_argnums=0)
    for batch_stats in ("interpolate", "keep"):
        hook = PIAT(batch_stats=batch_stats)
        for end in (hook, jax.jit(hook), jax.jit(hook, donate_argnums=0)):
            state = hook.init(make_state(optimizer))
            for epoch in (1, 2):
                state = end(step(state), jnp.int32(epoch))
            state = step(state)
            assert np.all(np.isfinite(state.anchor.params["w"]))
            assert int(state.step) == 3


def test_it_costs_one_copy_of_what_it_interpolates():
    without = make_state(params={"w": jnp.zeros(5000)}, model_state={"batch_stats": {"mean": jnp.zeros(3000)}})
    state = PIAT().init(without)
    size = {
        name: sum(leaf.nbytes for leaf in jax.tree.leaves(s)) for name, s in (("with", state), ("without", without))
    }
    assert size["with"] - size["without"] == 4 * (5000 + 3000)
    memory = jax.jit(PIAT(), donate_argnums=0).lower(state, jnp.int32(1)).compile().memory_analysis()
    # In place but for the anchor, which may not share the weights' buffer: they are donated to the next step.
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 100 + 4 * 8000
    assert memory.temp_size_in_bytes < 100 + 4 * 8000


def test_start_copies():
    state = make_state()
    started = PIAT().init(state)
    jax.tree.map(np.testing.assert_array_equal, started.anchor, Variables(PARAMS, STATS))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((started.anchor, started.variables))]
    assert len(set(pointers)) == len(pointers)


def test_equal_hooks_are_equal_and_hash():
    assert PIAT() == PIAT(weight=RationalWeight()) != PIAT(first_epoch=0)
    assert hash(PIAT()) == hash(PIAT(weight=RationalWeight()))


@pytest.mark.parametrize(
    ("optimizer", "zeroed", "kept"),
    [
        (optax.sgd(0.1, momentum=0.9), {"trace"}, set()),
        (optax.adam(optax.linear_schedule(0.1, 0.0, 10)), {"mu"}, {"nu", "count"}),
        (optax.MultiSteps(optax.masked(optax.lion(0.1), {"w": True, "mu": False}), 1), {"mu"}, {"gradient_step"}),
    ],
)
def test_momentum_reset(optimizer, zeroed, kept):
    state = PIAT().init(make_state(optimizer))
    for _ in range(2):
        state = train_step(optimizer, state)
    assert PIAT()(state, 1).opt_state is state.opt_state
    after = jax.jit(PIAT(momentum="reset"))(state, jnp.int32(1)).opt_state
    seen = set()
    before_leaves, after_leaves = (jax.tree_util.tree_leaves_with_path(tree) for tree in (state.opt_state, after))
    assert jax.tree.structure(after) == jax.tree.structure(state.opt_state)
    for (path, old), (_, new) in zip(before_leaves, after_leaves):
        # The parameter called "mu" is a dictionary key: it does not make a momentum of what holds it.
        names = {key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)}
        assert old.dtype == new.dtype
        if names & zeroed:
            assert np.all(np.asarray(old) != 0)
            np.testing.assert_array_equal(new, jnp.zeros_like(old))
        else:
            np.testing.assert_array_equal(new, old)
        seen |= names
    assert zeroed | kept <= seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 2}, "weight=2 must be in"),
        ({"first_epoch": -1}, "first_epoch=-1 must be at least 0"),
        ({"batch_stats": "interpolat"}, "did you mean 'interpolate'"),
        ({"momentum": "rset"}, "did you mean 'reset'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        PIAT(**arguments)


def test_missing_anchor_and_momentum_are_named():
    with pytest.raises(InputError, match=r"call PIAT.init\(state\) once"):
        PIAT()(make_state(), 1)
    with pytest.raises(InputError, match="finds no momentum"):
        PIAT(momentum="reset")(PIAT().init(make_state(optax.sgd(0.1))), 1)
