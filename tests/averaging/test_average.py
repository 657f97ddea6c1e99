import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.averaging import EQUAL_WEIGHT, PIAT, Average, Gated, WarmupDecay, averaged, share_of_first
from piat_jax.core.checks import InputError
from piat_jax.core.types import TrainState

RNG = np.random.default_rng(0)
TRACK = RNG.normal(size=12)  # where the one weight goes
EMA = Average(0.9, every="step")
SEAT = Average(WarmupDecay(0.4), every="step")
SWA = Average(EQUAL_WEIGHT, start=55 / 200, epochs=20, batch_stats="recompute")


def make_state(w=100.0, epoch=0):
    return TrainState(
        step=jnp.int32(0),
        epoch=jnp.int32(epoch),
        params={"w": jnp.full((2,), w, jnp.float32)},
        model_state={"mean": jnp.float32(-w), "counter": jnp.int32(w)},
        opt_state=(),
        objective_state=(),
    )


def at(state, w, epoch=0):
    """The state after training has led to w."""
    there = make_state(w, epoch)
    return dataclasses.replace(state, params=there.params, model_state=there.model_state, epoch=there.epoch)


def over_steps(average, track, **where):
    state, after_step = average.init(make_state()), jax.jit(average.after_step)
    for w in track:
        state = after_step(at(state, w, **where))
    return state


def over_epochs(average, track):
    state, end = average.init(make_state()), jax.jit(average)
    for number, w in enumerate(track):
        state = end(at(state, w), jnp.int32(number + 1))
    return state


def test_several_averages_are_what_each_is_alone():
    slow, mean = (
        dataclasses.replace(each, name=name) for each, name in ((Average(0.99, every="step"), "slow"), (SWA, "mean"))
    )
    together = mean.init(slow.init(EMA.init(make_state())))
    for number, w in enumerate(TRACK):
        together = at(together, w)
        for average in (EMA, slow):
            together = average.after_step(together)
        together = mean(together, jnp.int32(number + 1))
    assert set(together.further_averages) == {"slow", "mean"}
    alone = {"": over_steps(EMA, TRACK), "slow": over_steps(slow, TRACK), "mean": over_epochs(mean, TRACK)}
    for name, state in alone.items():
        for one, other in zip(jax.tree.leaves(averaged(together, name)), jax.tree.leaves(averaged(state, name))):
            np.testing.assert_array_equal(one, other)
    assert averaged(together).params["w"][0] != averaged(together, "slow").params["w"][0]
    with pytest.raises(InputError, match=r"state\.further_averages has no 'other'; call Average\.init"):
        averaged(together, "other")


def test_exponential_average_in_closed_form():
    state = over_steps(EMA, TRACK)
    powers = 0.9 ** np.arange(len(TRACK) - 1, -1, -1)
    expected = np.sum(np.append(powers[0], 0.1 * powers[1:]) * TRACK)  # the first state is a copy
    variables = averaged(state)
    np.testing.assert_allclose(variables.params["w"], np.full(2, expected), rtol=1e-5)
    np.testing.assert_allclose(variables.model_state["mean"], -expected, rtol=1e-5)
    assert variables.model_state["counter"] == int(TRACK[-1])
    assert state.average.count == len(TRACK)
    np.testing.assert_array_equal(state.params["w"], np.full(2, TRACK[-1], np.float32))  # never written back


def test_warmed_up_average_forgets_as_the_product_of_its_weights():
    state = over_steps(SEAT, [1.0] + [0.0] * 11)
    expected = math.prod(min(0.4, (n + 1) / (n + 10)) for n in range(1, 12))
    np.testing.assert_allclose(averaged(state).params["w"], np.full(2, expected), rtol=1e-5)
    assert expected != pytest.approx(math.prod((n + 1) / (n + 10) for n in range(1, 12)), rel=1e-3)


def test_equal_average_is_the_mean_from_its_first_epoch_on():
    # 55/200 of 20 epochs is epoch 5.5, 0-based: rounded to the even 6.
    state = over_epochs(SWA, TRACK)
    np.testing.assert_allclose(averaged(state).params["w"], np.full(2, TRACK[6:].mean()), rtol=1e-5)
    assert state.average.count == 6
    # The statistics are the current ones, to be recomputed.
    np.testing.assert_array_equal(averaged(state).model_state["mean"], state.model_state["mean"])


def test_gate_of_steps_is_the_epoch_they_belong_to():
    average = Average(0.9, every="step", start=0.5, epochs=4)
    assert [int(over_steps(average, [1.0], epoch=epoch).average.count) for epoch in range(4)] == [0, 0, 1, 1]


def test_before_the_first_state_the_current_weights_are_evaluated():
    state = at(SWA.init(make_state()), 3.0)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(averaged)(state), state.variables)


@pytest.mark.parametrize("average", [Average(0.0), Average(0.0, batch_stats="recompute")])
def test_without_weight_on_the_past_it_is_a_copy(average):
    state = over_epochs(average, TRACK)
    jax.tree.map(np.testing.assert_array_equal, state.average.variables, state.variables)


def test_the_other_period_changes_nothing():
    state = EMA.init(make_state())
    assert EMA(state, 1) is state
    assert SWA.after_step(state) is state


def test_only_accepted_epochs_are_averaged():
    seen = []

    def accept(state):
        seen.append(float(state.params["w"][0]))
        return seen[-1] > 1.5

    hook = Gated(jax.jit(Average(0.88), donate_argnums=0), accept)
    state = Average(0.88).init(make_state())
    for number, w in enumerate((1.0, 2.0, 1.0, 4.0)):
        state = hook(at(state, w), number + 1)
    assert seen == [1.0, 2.0, 1.0, 4.0]
    assert state.average.count == 2
    np.testing.assert_allclose(averaged(state).params["w"], np.full(2, 0.88 * 2 + 0.12 * 4), rtol=1e-5)


def test_after_piat_its_interpolated_weights_are_averaged():
    piat, swa = PIAT(weight=0.5), Average(EQUAL_WEIGHT)
    state, slow = swa.init(piat.init(make_state(0.0))), []
    for number, w in enumerate((4.0, 8.0), 1):
        state = swa(piat(at(state, w), number), number)
        slow.append(float(state.params["w"][0]))
    assert slow == [2.0, 5.0]
    np.testing.assert_array_equal(averaged(state).params["w"], [3.5, 3.5])


def test_the_state_can_be_donated():
    move = jax.jit(
        lambda state: dataclasses.replace(state, params=jax.tree.map(lambda w: w + 1, state.params)), donate_argnums=0
    )
    for average in (Average(0.9), Average(0.9, batch_stats="recompute")):
        for end in (average, jax.jit(average), jax.jit(average, donate_argnums=0)):
            state = average.init(make_state())
            for epoch in (1, 2, 3):
                state = end(move(state), jnp.int32(epoch))
            assert np.all(np.isfinite(averaged(move(state)).params["w"]))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(EMA.init(make_state()))]
    assert len(set(pointers)) == len(pointers)


def test_equal_averages_are_equal_and_hash():
    again = Average(WarmupDecay(0.4), every="step")
    assert SEAT == again != EMA
    assert hash(again) == hash(SEAT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 1.5}, "weight=1.5 must be in [0, 1]"),
        ({"weight": 0.9, "every": "epochs"}, "every='epochs' is unknown; did you mean 'epoch'?"),
        ({"weight": 0.9, "batch_stats": "keep"}, "batch_stats='keep' is unknown"),
        ({"weight": 0.9, "start": 55, "epochs": 200}, "start=55 must be a share of the run"),
        ({"weight": 0.9, "start": 0.5}, "start=0.5 is a share of the run; give epochs as well"),
        ({"weight": 0.9, "epochs": 0}, "epochs=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Average(**arguments)


def test_a_bad_limit_and_a_missing_average_are_named():
    with pytest.raises(InputError, match=r"limit=2 must be in \[0, 1\]"):
        WarmupDecay(2)
    for call in (EMA.after_step, averaged):
        with pytest.raises(InputError, match=r"call Average\.init"):
            call(make_state())


def test_statistics_of_the_optimizer_play_no_part():
    state = dataclasses.replace(make_state(), opt_state=optax.sgd(0.1, momentum=0.9).init(make_state().params))
    after = EMA.after_step(EMA.init(state))
    assert after.opt_state is state.opt_state


def test_the_share_of_the_first_state_is_what_the_average_keeps_of_it():
    for weight in (0.9, WarmupDecay(0.4), EQUAL_WEIGHT):
        for states in (1, 2, 12):
            state = over_steps(Average(weight, every="step"), [1.0] + [0.0] * (states - 1))
            np.testing.assert_allclose(share_of_first(weight, states), averaged(state).params["w"][0], rtol=1e-5)
    with pytest.raises(InputError, match="states=0 must be at least 1"):
        share_of_first(0.9, 0)
    with pytest.raises(InputError, match="weight=2"):
        share_of_first(2.0, 3)
