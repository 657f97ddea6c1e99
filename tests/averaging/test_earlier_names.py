"""Names of the release before: each works, says what it is called now, and does the same."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.averaging import PIAT, Average, interpolate_params, interpolated
from piat_jax.core.checks import InputError
from piat_jax.core.types import TrainState

STATE = TrainState(step=0, epoch=0, params={"w": jnp.ones(2)}, model_state={}, opt_state=(), objective_state=())


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_states_are_begun_by_init():
    with pytest.warns(DeprecationWarning, match=r"PIAT\.start is called PIAT\.init now; the next release removes"):
        same(PIAT().start(STATE), PIAT().init(STATE))
    with pytest.warns(DeprecationWarning, match=r"Average\.start_average is called Average\.init now"):
        same(Average(0.9).start_average(STATE), Average(0.9).init(STATE))


def test_an_average_says_every_when():
    with pytest.warns(DeprecationWarning, match=r"Average\(period=\.\.\.\) is called Average\(every=\.\.\.\) now"):
        average = Average(0.9, period="step")
    assert average == Average(0.9, every="step") == Average(0.9, "step")
    with pytest.warns(DeprecationWarning, match=r"Average\.period is called Average\.every now"):
        assert average.period == "step"
    with pytest.raises(
        InputError, match="Average received period and every, which are the same argument; leave out period"
    ):
        Average(0.9, period="step", every="step")
    assert list(inspect.signature(Average).parameters) == ["weight", "every", "start", "epochs", "batch_stats", "name"]


@pytest.mark.parametrize("make", [interpolate_params, lambda **options: interpolated(optax.identity(), **options)])
def test_the_first_interpolation_is_numbered_as_piats_first_epoch(make):
    with pytest.warns(DeprecationWarning, match=r"\(first=\.\.\.\) is called interpolat\w+\(first_epoch=\.\.\.\) now"):
        old = make(period=1, first=0)
    updates = [
        each.update({"w": jnp.ones(2)}, each.init(STATE.params), STATE.params)[0]
        for each in (old, make(period=1, first_epoch=0), make(period=1))
    ]
    same(updates[0], updates[1])
    assert np.any(updates[0]["w"] != updates[2]["w"])
