import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.core.checks import InputError
from piat_jax.training import piecewise_linear, sgd
from piat_jax.training.step import _trial_step


def test_sgd_is_pytorchs_with_coupled_weight_decay():
    w = jnp.array([1.0, -2.0])
    optimizer = sgd(0.1, momentum=0.9, weight_decay=0.01)
    state = optimizer.init(w)
    reference, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for step in range(5):
        gradient = 3 * w + step
        updates, state = optimizer.update(gradient, state, w)
        velocity = 0.9 * velocity + (3 * reference + step) + 0.01 * reference
        reference = reference - 0.1 * velocity
        w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(w, reference, rtol=1e-5)


def test_long_gradients_are_scaled_before_the_decay():
    params, gradient = (
        {"w": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)},
        {"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)},
    )
    optimizer = sgd(0.1, weight_decay=0.01, max_norm=1.0)
    for scale in (1.0, 0.1):  # of norm 5 and 0.5
        g = jax.tree.map(lambda g: scale * g, gradient)  # noqa: B023
        updates, _ = optimizer.update(g, optimizer.init(params), params)
        for name, update in updates.items():
            clipped = gradient[name] / 5 if scale == 1 else g[name]
            np.testing.assert_allclose(update, -0.1 * (clipped + 0.01 * params[name]), rtol=1e-5)
    # Without it the state is what it was, so older runs go on.
    assert jax.tree.structure(sgd(0.1).init(params)) == jax.tree.structure(sgd(0.1, max_norm=0.0).init(params))
    with pytest.raises(InputError, match="max_norm=-1"):
        sgd(0.1, max_norm=-1)


def test_two_knots_an_epoch_apart_are_a_step():
    schedule = jax.jit(piecewise_linear((0, 35, 36, 38, 39, 40), (0.1, 0.1, 0.01, 0.01, 0.001, 0.001), 781))
    rates = np.array([schedule(781 * epoch + step) for epoch in range(40) for step in (0, 780)])
    np.testing.assert_allclose(rates, [0.1] * 70 + [0.01] * 6 + [0.001] * 4, rtol=1e-6)


def test_the_papers_schedule_for_resnet18():
    schedule = piecewise_linear((0, 60, 90, 120), (1e-2, 1e-2, 1e-3, 1e-4), 390)
    rate = {n: float(schedule((n - 1) * 390)) for n in (1, 60, 61, 75, 90, 105, 119, 120)}
    expected = {1: 0.01, 60: 0.01, 61: 0.0097, 75: 0.0055, 90: 0.001, 105: 0.00055, 119: 0.00013, 120: 0.0001}
    assert rate == pytest.approx(expected, rel=1e-5)


def test_the_papers_schedule_for_wrn():
    schedule = piecewise_linear((0, 90, 135, 180), (0.1, 0.1, 0.01, 0.001), 1)
    rates = np.array([float(schedule(step)) for step in range(180)])
    assert rates[89] == pytest.approx(0.1)
    assert rates[134] == pytest.approx(0.01)
    assert rates[179] == pytest.approx(0.001)
    assert np.all(np.diff(rates) <= 0)


def test_the_rate_is_constant_within_an_epoch_and_traceable():
    schedule = jax.jit(piecewise_linear((1, 3), (1.0, 0.0), 10))
    assert [float(schedule(step)) for step in (0, 9, 10, 19, 20, 99)] == [1, 1, 0.5, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("epochs", "values", "message"),
    [((0, 1), (1.0,), "one value per knot"), ((0, 0), (1.0, 1.0), "must increase"), ((), (), "one value per knot")],
)
def test_bad_schedules(epochs, values, message):
    with pytest.raises(InputError, match=message):
        piecewise_linear(epochs, values, 1)


def test_bad_optimizers():
    with pytest.raises(InputError, match="weight_decay=-1"):
        sgd(0.1, weight_decay=-1)
    with pytest.raises(InputError, match="steps_per_epoch=0"):
        piecewise_linear((0, 1), (1.0, 1.0), 0)


def test_a_trial_step_is_one_without_momentum_at_the_current_rate():
    optimizer = sgd(lambda step: 0.1 / (1.0 + step), momentum=0.9, weight_decay=0.5)
    w, g = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([3.0, 4.0])}
    state = optimizer.init(w)
    for _ in range(2):
        _, state = optimizer.update(g, state, w)
    at = {"w": jnp.array([2.0, 2.0])}  # weight decay is of where the gradient was taken
    tried = _trial_step(optimizer, state, g, at, w)
    np.testing.assert_allclose(tried["w"], w["w"] - 0.1 / 3 * (g["w"] + 0.5 * at["w"]), rtol=1e-6)
