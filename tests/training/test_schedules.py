"""Learning rates against closed forms; tests/test_torch_optimizers.py compares them with PyTorch's."""

import jax
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.training.schedules import SCHEDULES, Rate, build_rate, piecewise_linear, schedule_fields

EPOCHS, STEPS = 10, 20
RUN = {"epochs": EPOCHS, "steps_per_epoch": STEPS}


def rates(name, every="step", **fields):
    """The rate of each step."""
    rate = build_rate(name, {**fields, "lr_every": every}, **RUN)
    return np.asarray(jax.jit(jax.vmap(rate.learning_rate))(np.arange(EPOCHS * STEPS)))


STEP = np.arange(EPOCHS * STEPS)


def test_constant():
    np.testing.assert_allclose(rates("constant", lr=0.3), 0.3)


def test_warmup_rises_in_a_straight_line_and_wastes_no_step():
    found = rates("constant", lr=0.3, lr_warmup=0.1, lr_unit="shares")
    np.testing.assert_allclose(found[:20], 0.3 * (STEP[:20] + 1) / 21, rtol=1e-6)
    np.testing.assert_allclose(found[20:], 0.3, rtol=1e-6)
    in_epochs = rates("constant", lr=0.3, lr_warmup=1.0, lr_unit="epochs")
    np.testing.assert_array_equal(found, in_epochs)


@pytest.mark.parametrize("unit", ["shares", "epochs"])
def test_step(unit):
    drops = (0.3, 0.5) if unit == "shares" else (3.0, 5.0)
    found = rates("step", "epoch", lr=0.4, lr_drops=drops, lr_factor=0.5, lr_unit=unit)
    epoch = STEP // STEPS
    np.testing.assert_allclose(found, np.where(epoch < 3, 0.4, np.where(epoch < 5, 0.2, 0.1)), rtol=1e-6)
    np.testing.assert_array_equal(found, rates("step", lr=0.4, lr_drops=drops, lr_factor=0.5, lr_unit=unit))


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_cosine_and_linear(every):
    share = (STEP if every == "step" else STEP // STEPS * STEPS) / (EPOCHS * STEPS)
    cosine = 0.1 + 0.3 * (1 + np.cos(np.pi * share)) / 2
    np.testing.assert_allclose(rates("cosine", every, lr=0.4, lr_final=0.1), cosine, rtol=1e-5)
    np.testing.assert_allclose(rates("linear", every, lr=0.4, lr_final=0.1), 0.4 - 0.3 * share, rtol=1e-5)


def test_the_fall_begins_after_the_warmup():
    found = rates("cosine", lr=0.4, lr_warmup=5.0)
    np.testing.assert_allclose(found[100:], 0.2 * (1 + np.cos(np.pi * (STEP[100:] - 100) / 100)), atol=1e-6)
    np.testing.assert_allclose(found[:100], 0.4 * (STEP[:100] + 1) / 101, rtol=1e-6)


def test_triangular():
    found = rates("triangular", lr=0.2, lr_peak=4.0)
    np.testing.assert_allclose(found, np.interp(STEP, [0, 80, 200], [0, 0.2, 0]), rtol=1e-5)


def test_the_papers_schedule_is_per_epoch_and_may_go_on_between_epochs():
    knots, values = (0, 2, 5, 10), (0.1, 0.1, 0.01, 0.001)
    found = rates("piecewise_linear", "epoch", lr_epochs=knots, lr_values=values)
    np.testing.assert_array_equal(found, [float(piecewise_linear(knots, values, STEPS)(step)) for step in STEP])
    shares = tuple(knot / EPOCHS for knot in knots)
    same = rates("piecewise_linear", "epoch", lr_epochs=shares, lr_values=values, lr_unit="shares")
    np.testing.assert_allclose(found, same, rtol=1e-6)
    moving = rates("piecewise_linear", "step", lr_epochs=knots, lr_values=values)
    np.testing.assert_allclose(moving, np.interp(STEP / STEPS, knots, values), rtol=1e-5)


def test_cycles_move_the_momentum():
    for name in SCHEDULES:
        rate = build_rate(name, {}, epochs=120, steps_per_epoch=3)
        assert isinstance(rate, Rate)
        assert (rate.momentum is not None) == (name in ("one_cycle", "triangular"))
    cycle = build_rate("one_cycle", {"lr": 0.2, "lr_peak": 0.3, "lr_unit": "shares", "lr_every": "step"}, **RUN)
    momentum, rising = (np.asarray(jax.vmap(part)(STEP)) for part in (cycle.momentum, cycle.learning_rate))
    assert np.argmin(momentum) == np.argmax(rising) == 59  # pct_start 0.3 of 200, and one less
    np.testing.assert_allclose([momentum.max(), momentum.min(), rising.max()], [0.95, 0.85, 0.2], rtol=1e-6)
    np.testing.assert_allclose([rising[0], rising[-1]], [0.2 / 25, 0.2 / 25e4], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_field_changes_the_rate(name):
    other = {"lr_every": "step", "lr_unit": "shares", "lr_anneal": "linear", "lr_drops": (2.0, 6.0), "lr_final": 0.05}
    other |= {"lr_epochs": (0.0, 5.0, 9.0, 10.0), "lr_values": (0.02, 0.01, 0.001, 0.0002), "lr_warmup": 4.0}
    # As shares or as epochs, these are in the run.
    before = {"lr_warmup": 1.0, "lr_peak": 0.9, "lr_drops": (0.5, 0.9), "lr_epochs": (0.0, 0.3, 0.6, 1.0)}
    before = {field: value for field, value in before.items() if field in schedule_fields(name)}

    def values(fields):
        rate = build_rate(name, fields, **RUN)
        return np.concatenate([jax.vmap(part)(STEP) for part in rate if part])

    for field, default in schedule_fields(name).items():
        changed = other.get(field, default / 2 if isinstance(default, float) else None)
        if field == "lr_peak":
            changed = 4.0
        assert not np.array_equal(values(before), values({**before, field: changed})), field


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("cosin", {}, "schedule='cosin' is unknown; did you mean 'cosine'?"),
        ("cosine", {"lr": -1.0}, "lr=-1.0 must be at least 0"),
        ("cosine", {"lr_warmup": 1.5, "lr_unit": "shares"}, r"lr_warmup=1.5 must be in \[0, 1\]"),
        ("cosine", {"lr_warmup": 11.0, "lr_unit": "epochs"}, r"lr_warmup=11.0 must be in \[0, 10\]"),
        ("cosine", {"lr_every": "day"}, "lr_every='day'"),
        ("step", {"lr_drops": (5.0, 5.0)}, r"lr_drops=\(5.0, 5.0\) must increase"),
        ("step", {"lr_drops": (5.0, 150.0)}, r"lr_drops=150.0 must be in \[0, 10\]"),
        ("one_cycle", {"lr_peak": 3.0, "momentum_low": 1.5}, "momentum_low=1.5"),
        ("one_cycle", {"lr_peak": 3.0, "lr_start_div": 0.0}, "lr_start_div=0.0"),
    ],
)
def test_what_is_wrong_is_said(name, fields, message):
    with pytest.raises(InputError, match=message):
        build_rate(name, fields, **RUN)


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("every", ["step", "epoch"])
def test_the_device_is_not_asked_for_the_knots(name, every):
    rate = build_rate(name, {"lr_every": every}, epochs=200, steps_per_epoch=STEPS)
    for part in filter(None, rate):
        constants = jax.make_jaxpr(part)(np.int32(0)).consts
        assert not [each for each in constants if isinstance(each, jax.Array)]
