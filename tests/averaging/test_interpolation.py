import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from piat_jax.averaging import (
    InterpolateParamsState,
    RationalWeight,
    eval_params,
    interpolate,
    interpolate_params,
    interpolated,
)
from piat_jax.core.checks import InputError
from tests.processors import skip_unless_compiled


def gradient(params):
    return jax.grad(lambda p: sum(jnp.sum((leaf - 1.0) ** 2) for leaf in jax.tree.leaves(p)))(params)


def descend(optimizer, params, steps, **extra_args):
    """The parameters after each step on a quadratic, and the last state."""

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient(params), state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    state, trajectory = optimizer.init(params), []
    for _ in range(steps):
        params, state = step(params, state)
        trajectory.append(params)
    return trajectory, state


def downhill(optimizer, x, steps):
    """x under the constant gradient 1, so that trajectories can be worked out by hand."""
    x, state, trajectory = jnp.array(x), optimizer.init(jnp.array(x)), []
    for _ in range(steps):
        updates, state = optimizer.update(jnp.array(1.0), state, x)
        x = optax.apply_updates(x, updates)
        trajectory.append(x.item())
    return trajectory


PARAMS = {"layer": {"w": jnp.array([[4.0, -2.0], [0.5, 3.0]]), "b": jnp.array([7.0, 0.0])}}


class TestRationalWeight:
    @pytest.mark.parametrize(("n", "expected"), [(0, 1 / 10), (1, 2 / 11), (9, 10 / 19), (120, 121 / 130)])
    def test_values(self, n, expected):
        for spelling in (n, jnp.int32(n), float(n)):
            value = RationalWeight()(spelling)
            assert value.dtype == jnp.float32
            np.testing.assert_allclose(value, expected, rtol=2e-7)
        np.testing.assert_allclose(jax.jit(RationalWeight())(n), expected, rtol=2e-7)

    def test_total_displacement(self):
        n = np.arange(121)
        kept = 1 - np.asarray(RationalWeight()(n), np.float64)
        np.testing.assert_allclose(kept[1:].sum(), 22.6766, atol=1e-4)
        np.testing.assert_allclose(kept[:-1].sum(), 23.5074, atol=1e-4)

    def test_every_constant_counts(self):
        np.testing.assert_allclose(RationalWeight(a=2, b=3, c=5, d=7)(11), (2 * 11 + 3) / (5 * 11 + 7), rtol=2e-7)

    def test_equal_constants_are_equal(self):
        assert RationalWeight(d=5) == RationalWeight(d=5.0) != RationalWeight()
        assert hash(RationalWeight(d=5)) == hash(RationalWeight(d=5.0))

    @pytest.mark.parametrize("constants", [{"a": 2}, {"b": 11}, {"a": -1}, {"b": -1}, {"b": 0, "d": 0}, {"c": np.nan}])
    def test_weights_outside_the_interval_are_refused(self, constants):
        with pytest.raises(InputError, match="give c >= a >= 0, d >= b >= 0 and d > 0"):
            RationalWeight(**constants)


class TestInterpolate:
    def test_hand_values(self):
        out = interpolate({"x": jnp.array([10.0, 0.0])}, {"x": jnp.array([0.0, 1.0])}, 0.2)
        np.testing.assert_allclose(out["x"], [2.0, 0.8], rtol=1e-6)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_equal_trees_come_back_bit_for_bit(self, dtype):
        x = jnp.concatenate([jax.random.normal(jax.random.key(0), (1000,)) * 1e3, jnp.array([0.0, -0.0, 1e-30])])
        x = x.astype(dtype)
        for weight in (0.0, 2 / 11, 1 / 3, 0.93, 1.0):
            for run in (interpolate, jax.jit(interpolate)):
                assert np.asarray(run(x, x, weight)).tobytes() == np.asarray(x).tobytes()

    def test_ends_are_exact_and_ignore_the_other_tree(self):
        x = jax.random.normal(jax.random.key(0), (1000,)) * 1e3
        spoiled = jax.random.normal(jax.random.key(1), (1000,)).at[:2].set(jnp.array([jnp.nan, jnp.inf]))
        for run in (interpolate, jax.jit(interpolate)):
            np.testing.assert_array_equal(run(spoiled, x, 0.0), x)
            np.testing.assert_array_equal(run(x, spoiled, 1.0), x)

    def test_bfloat16_is_mixed_in_float32(self):
        previous, current = jnp.bfloat16(1.0), jnp.bfloat16(256.0)
        out = interpolate(previous, current, 0.3)
        assert out.dtype == jnp.bfloat16
        # 0.3 is not a bfloat16: rounding the weight first would give 179.
        assert out == jnp.bfloat16(0.3 * 1.0 + 0.7 * 256.0)

    def test_float64_stays_double(self):
        with jax.enable_x64(True):
            out = interpolate(jnp.float64(1.0), jnp.float64(1.0 + 1e-12), 0.5)
            assert out.dtype == jnp.float64
            assert out - 1.0 == pytest.approx(5e-13, rel=1e-3, abs=0)

    def test_counters_flags_and_keys_are_current(self):
        key = jax.random.key(5)
        previous = {"count": jnp.int32(10), "on": jnp.array(False), "key": jax.random.key(4), "w": jnp.array(0.0)}
        current = {"count": jnp.int32(20), "on": jnp.array(True), "key": key, "w": jnp.array(4.0)}
        out = interpolate(previous, current, 0.75)
        assert out["count"] == 20
        assert out["count"].dtype == jnp.int32
        assert out["on"]
        assert out["key"] == key
        assert out["w"] == 1.0

    @pytest.mark.parametrize(
        ("previous", "current", "message"),
        [
            ({"a": 1.0}, {"a": 1.0, "b": 1.0}, "only current has ['b']"),
            ({"a": 1.0, "b": 1.0}, {"a": 1.0}, "only previous has ['b']"),
            ({"a": np.ones(1)}, {"a": np.ones(3)}, "differ at ['a']: shape (1,) against (3,)"),
            ([1.0], (1.0,), "containers differ in type"),
        ],
    )
    def test_different_trees_are_refused(self, previous, current, message):
        with pytest.raises(InputError, match=re.escape(message)):
            interpolate(previous, current, 0.5)


class TestTrajectories:
    def test_constant_weight_by_hand(self):
        # Fast weights fall by 1 a step; every second step x becomes 3/4 of the last result and 1/4 of itself:
        # (3 * 8 + 6) / 4 = 7.5, then (3 * 7.5 + 5.5) / 4 = 7.
        optimizer = optax.chain(optax.sgd(1.0), interpolate_params(2, weight=0.75))
        assert downhill(optimizer, 8.0, 4) == [7.0, 7.5, 6.5, 7.0]

    @pytest.mark.parametrize(("first", "numbers"), [(1, (1, 2, 3)), (0, (0, 1, 2)), (5, (5, 6, 7))])
    def test_schedule_sees_the_number_of_the_interpolation(self, first, numbers):
        x, expected = 8.0, []
        for n in numbers:
            expected.append(x - 1)
            x = x + (1 - (n + 1) / (n + 10)) * -2  # the weight of the past, on what two steps moved
            expected.append(x)
        np.testing.assert_allclose(
            downhill(interpolated(optax.sgd(1.0), 2, first_epoch=first), 8.0, 6), expected, rtol=1e-6
        )

    def test_weight_zero_is_plain_descent_and_one_goes_nowhere(self):
        assert downhill(interpolated(optax.sgd(1.0), 2, weight=0.0), 8.0, 4) == [7.0, 6.0, 5.0, 4.0]
        assert downhill(interpolated(optax.sgd(1.0), 2, weight=1.0), 8.0, 4) == [7.0, 8.0, 7.0, 8.0]

    def test_without_trigger_nothing_happens(self):
        assert downhill(interpolated(optax.sgd(1.0)), 8.0, 3) == [7.0, 6.0, 5.0]

    @pytest.mark.parametrize("weight", [0.0, 0.3, 0.9])
    def test_constant_weight_is_lookahead(self, weight):
        fast = optax.sgd(0.05, momentum=0.9)
        ours, _ = descend(interpolated(fast, 3, weight=weight), PARAMS, 10)
        theirs = optax.lookahead(fast, sync_period=3, slow_step_size=1 - weight)
        pair = optax.LookaheadParams.init_synced(PARAMS)
        state = theirs.init(pair)
        for mine in ours:
            updates, state = theirs.update(gradient(pair.fast), state, pair)
            pair = optax.apply_updates(pair, updates)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), mine, pair.fast)

    def test_anchor_is_what_was_written(self):
        trajectory, state = descend(interpolated(optax.adam(0.1), 3), PARAMS, 8)
        anchor = eval_params(state, trajectory[-1])
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-7), anchor, trajectory[5])
        assert int(state[-1].count) == 8
        assert int(state[-1].syncs) == 2

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_anchor_is_what_was_written_to_the_last_bit(self, dtype):
        # Far from the anchor p + (target - p) rounds to something else than the target; the anchor has to follow.
        optimizer = interpolate_params(1, weight=0.3)
        far = jnp.full(1000, 1e4, dtype)
        state = optimizer.init(jax.random.normal(jax.random.key(0), (1000,), dtype))
        updates, state = optimizer.update(jax.random.normal(jax.random.key(1), (1000,), dtype) - far, state, far)
        np.testing.assert_array_equal(
            np.float32(state.anchor), np.float32(optax.apply_updates(far, updates)), strict=True
        )


class TestExtraArgument:
    @pytest.mark.parametrize("make", [bool, jnp.array])
    def test_triggers_on_that_update(self, make):
        optimizer = interpolated(optax.sgd(1.0), weight=0.5)
        x, seen = jnp.array(8.0), []
        state = optimizer.init(x)
        for ask in (False, True, False, False, True):
            updates, state = optimizer.update(jnp.array(1.0), state, x, interpolate=make(ask), unknown="ignored")
            x = optax.apply_updates(x, updates)
            seen.append(x.item())
        assert seen == [7.0, 7.0, 6.0, 5.0, 5.5]

    def test_adds_to_the_period(self):
        optimizer = interpolated(optax.sgd(1.0), 3, weight=0.5)
        x, seen = jnp.array(8.0), []
        state = optimizer.init(x)
        for ask in (True, False, False, False):
            updates, state = optimizer.update(jnp.array(1.0), state, x, interpolate=ask)
            x = optax.apply_updates(x, updates)
            seen.append(x.item())
        # 7.5 by request; then 6.5, and update 3 is still due: (7.5 + 5.5) / 2.
        assert seen == [7.5, 6.5, 6.5, 5.5]

    def test_must_be_one_bool(self):
        optimizer = interpolate_params()
        x = jnp.ones(2)
        with pytest.raises(InputError, match=re.escape("interpolate has shape (2,)")):
            optimizer.update(x, optimizer.init(x), x, interpolate=jnp.array([True, False]))


class TestComposition:
    def test_scanned_traced_trigger_equals_period(self):
        optimizer, x = interpolated(optax.sgd(0.1, momentum=0.9)), jnp.array([4.0, -2.0])

        def step(carry, index):
            x, state = carry
            updates, state = optimizer.update(gradient(x), state, x, interpolate=index % 4 == 3)
            return (optax.apply_updates(x, updates), state), x

        (last, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(12)))((x, optimizer.init(x)))
        looped, _ = descend(interpolated(optax.sgd(0.1, momentum=0.9), 4), x, 12)
        np.testing.assert_allclose(last, looped[-1], rtol=1e-6)

    def test_masked_touches_only_what_the_mask_shows(self):
        mask = {"layer": {"w": True, "b": False}}
        half = optax.chain(optax.sgd(0.1), optax.masked(interpolate_params(2, weight=0.5), mask))
        masked, state = descend(half, PARAMS, 5)
        plain, _ = descend(optax.sgd(0.1), PARAMS, 5)
        whole, whole_state = descend(interpolated(optax.sgd(0.1), 2, weight=0.5), PARAMS, 5)
        np.testing.assert_array_equal(masked[-1]["layer"]["b"], plain[-1]["layer"]["b"])
        np.testing.assert_allclose(masked[-1]["layer"]["w"], whole[-1]["layer"]["w"], rtol=1e-6)
        found = eval_params(state, masked[-1])
        np.testing.assert_array_equal(found["layer"]["b"], masked[-1]["layer"]["b"])
        anchor = eval_params(whole_state, whole[-1])["layer"]["w"]
        np.testing.assert_allclose(found["layer"]["w"], anchor, rtol=1e-6)
        assert np.any(anchor != masked[-1]["layer"]["w"])

    def test_mask_of_a_whole_subtree(self):
        params = {"body": PARAMS, "head": jnp.ones(2)}
        optimizer = optax.chain(optax.sgd(0.1), optax.masked(interpolate_params(2), {"body": False, "head": True}))
        trajectory, state = descend(optimizer, params, 3)
        found = eval_params(state, trajectory[-1])
        np.testing.assert_array_equal(found["body"]["layer"]["w"], trajectory[-1]["body"]["layer"]["w"])
        np.testing.assert_array_equal(found["head"], trajectory[1]["head"])

    def test_multi_steps_counts_optimizer_steps(self):
        inside = optax.MultiSteps(interpolated(optax.sgd(1.0), 2, weight=0.5), every_k_schedule=2)
        assert downhill(inside, 8.0, 8) == [8.0, 7.0, 7.0, 7.0, 7.0, 6.0, 6.0, 6.0]
        _, state = descend(inside, PARAMS, 8)
        assert jax.tree.structure(eval_params(state, PARAMS)) == jax.tree.structure(PARAMS)

    def test_injected_constant_may_change_during_training(self):
        def factory(weight):
            return interpolated(optax.sgd(1.0), 1, weight=weight)

        optimizer = optax.inject_hyperparams(factory)(weight=0.5)
        step = jax.jit(optimizer.update)
        x = jnp.array(8.0)
        state = optimizer.init(x)
        updates, state = step(jnp.array(1.0), state, x)
        assert updates == -0.5
        state.hyperparams["weight"] = jnp.array(0.75)
        updates, state = step(jnp.array(1.0), state, x - 0.5)
        assert updates == -0.25
        assert eval_params(state, x) == 7.25

    def test_injected_schedule_must_be_static(self):
        inject = optax.inject_hyperparams(interpolate_params, static_args=("weight",))
        assert downhill(optax.chain(optax.sgd(1.0), inject(period=2)), 8.0, 6) == pytest.approx(
            downhill(interpolated(optax.sgd(1.0), 2), 8.0, 6), rel=1e-6
        )

    def test_params_and_state_can_be_donated_together(self):
        optimizer = interpolated(optax.sgd(0.1, momentum=0.9), 2)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state):
            updates, state = optimizer.update(gradient(params), state, params)
            return optax.apply_updates(params, updates), state

        for init in (optimizer.init, jax.jit(optimizer.init)):
            params = jax.tree.map(jnp.copy, PARAMS)
            state = init(params)
            for _ in range(3):
                params, state = step(params, state)
            expected, _ = descend(optimizer, PARAMS, 3)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), params, expected[-1])

    def test_nothing_retraces_and_the_state_is_stable(self):
        optimizer, traces = interpolated(optax.sgd(0.1), 2), []

        @jax.jit
        def step(params, state):
            traces.append(None)
            updates, state = optimizer.update(params, state, params)
            return optax.apply_updates(params, updates), state

        params = {"w": jnp.ones(3), "scale": jnp.asarray(2.0, jnp.float32)}
        state = optimizer.init(params)
        kinds = jax.tree.map(lambda x: jax.typeof(x), state)
        for _ in range(3):
            params, state = step(params, state)
        assert len(traces) == 1
        assert jax.tree.map(lambda x: jax.typeof(x), state) == kinds

    def test_anchor_of_a_weakly_typed_parameter_is_strong(self):
        assert not interpolate_params().init(jnp.asarray(2.0)).anchor.weak_type

    def test_bfloat16(self):
        optimizer = interpolated(optax.sgd(0.125), 2, weight=0.5)
        x = jnp.array([4.0, -2.0, 0.5], jnp.bfloat16)
        trajectory, state = descend(optimizer, x, 6)
        assert trajectory[-1].dtype == state[-1].anchor.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.float32(state[-1].anchor), np.float32(trajectory[-1]))
        exact, _ = descend(optimizer, x.astype(jnp.float32), 6)
        np.testing.assert_allclose(np.float32(trajectory[-1]), exact[-1], rtol=2e-2)
        updates, _ = optimizer.update(x, optimizer.init(x), x)
        assert updates.dtype == jnp.bfloat16

    @pytest.mark.parametrize(
        ("param", "given", "expected"),
        [("float32", "bfloat16", "float32"), ("bfloat16", "float32", "float32"), ("float16", "float16", "float16")],
    )
    def test_updates_are_never_narrowed(self, param, given, expected):
        skip_unless_compiled(param)
        optimizer = interpolate_params(2)
        x, u = jnp.ones(2, param), jnp.full(2, 0.1, given)
        updates, _ = optimizer.update(u, optimizer.init(x), x)
        assert updates.dtype == expected
        np.testing.assert_array_equal(updates, u.astype(expected))

    @pytest.mark.skipif("jax.device_count() < 2")
    def test_sharding_is_kept(self):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        split = NamedSharding(mesh, PartitionSpec("data"))
        x = jax.device_put(jnp.arange(8.0), split)
        optimizer = interpolated(optax.sgd(0.1), 2)
        trajectory, state = descend(optimizer, x, 4)
        assert optimizer.init(x)[-1].anchor.sharding.is_equivalent_to(split, 1)
        assert state[-1].anchor.sharding.is_equivalent_to(split, 1)
        assert trajectory[-1].sharding.is_equivalent_to(split, 1)
        alone, _ = descend(optimizer, jnp.arange(8.0), 4)
        np.testing.assert_allclose(trajectory[-1], alone[-1], rtol=1e-6)

    def test_optax_can_map_over_the_anchor(self):
        optimizer = interpolated(optax.sgd(0.1, momentum=0.9), 2)
        doubled = optax.tree.map_params(optimizer, lambda leaf: 2 * leaf, optimizer.init(PARAMS))
        np.testing.assert_array_equal(doubled[-1].anchor["layer"]["w"], 2 * PARAMS["layer"]["w"])
        assert doubled[-1].count == 0

    def test_vmaps_over_runs_with_triggers_of_their_own(self):
        optimizer, x = interpolated(optax.sgd(1.0), weight=0.5), jnp.array([8.0, 8.0])
        states = jax.vmap(optimizer.init)(x)
        update = jax.vmap(lambda u, s, p, ask: optimizer.update(u, s, p, interpolate=ask))
        updates, _ = update(jnp.ones(2), states, x, jnp.array([False, True]))
        assert updates.tolist() == [-1.0, -0.5]


class TestEvalParams:
    def test_none_and_several_are_refused(self):
        with pytest.raises(InputError, match="holds no interpolate_params; add it last"):
            eval_params(optax.adam(0.1).init(PARAMS), PARAMS)
        two = optax.chain(interpolate_params(2), interpolate_params(3))
        with pytest.raises(InputError, match="holds 2 interpolate_params"):
            eval_params(two.init(PARAMS), PARAMS)

    @pytest.mark.parametrize("other", [{"layer": {"w": jnp.ones(2)}}, {"layer": {**PARAMS["layer"], "w": jnp.ones(3)}}])
    def test_parameters_of_another_model_are_refused(self, other):
        state = interpolated(optax.sgd(0.1), 2).init(PARAMS)
        with pytest.raises(InputError, match=r"the anchor in opt_state and params (are different|differ)"):
            eval_params(state, other)

    def test_reads_a_bare_state(self):
        state = InterpolateParamsState(jnp.int32(0), jnp.int32(0), {"w": jnp.array(2.0)})
        assert eval_params(state, {"w": jnp.array(3.0)})["w"] == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"period": 0}, "period=0 must be at least 1"),
        ({"period": -3}, "period=-3 must be at least 1"),
        ({"period": 2.5}, "period=2.5 must be a whole number"),
        ({"period": "4"}, "period='4' must be a whole number"),
        ({"period": True}, "period=True must be a whole number"),
        ({"first_epoch": -1}, "first_epoch=-1 must be at least 0"),
        ({"weight": 1.5}, "weight=1.5 must be in [0, 1]"),
        ({"weight": jnp.float32(1.5)}, "weight=1.5 must be in [0, 1]"),
        ({"weight": float("nan")}, "weight=nan must be in [0, 1]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    for make in (interpolate_params, functools.partial(interpolated, optax.sgd(0.1))):
        with pytest.raises(InputError, match=re.escape(message)):
            make(**arguments)


def test_parameters_are_asked_for():
    optimizer = interpolate_params(2)
    with pytest.raises(ValueError, match=re.escape("call update(updates, state, params)")):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
