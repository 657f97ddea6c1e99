import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.core.checks import InputError
from piat_jax.training import build_optimizer, piecewise_linear, sgd
from piat_jax.training.optimizer import optimizer_names
from piat_jax.training.schedules import Rate
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


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_of_optax_steps_or_says_why_not(name):
    refused = {"lbfgs": "value", "momo": "value", "momo_adam": "value", "sophia": "obj_fn"}
    refused |= {"noisy_sgd": "key", "optimistic_adam": "deprecated"}  # what warns is an error here
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    if name in refused:
        with pytest.raises(InputError, match=f"optimizer '{name}' cannot be used here: .*{refused[name]}"):
            build_optimizer(name, 0.1)
        return
    optimizer = build_optimizer(name, 0.1, weight_decay=0.01)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
    moved = jax.tree.map(lambda w: float(jnp.abs(w - 1).max()), params)
    assert all(0 < far < 10 for far in moved.values()), moved


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "adam"])
def test_matrices_alone_decay(name):
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    none = jax.tree.map(jnp.zeros_like, params)

    def moved(**options):
        optimizer = build_optimizer(name, 0.1, weight_decay=0.5, **options)
        updates, _ = optimizer.update(none, optimizer.init(params), params)
        return {path: float(jnp.abs(update).max()) for path, update in updates.items()}

    everything, matrices = moved(), moved(weight_decay_on="matrices")
    assert everything["bias"] > 0
    assert everything["kernel"] == matrices["kernel"] > 0
    assert matrices["bias"] == 0


def test_a_schedule_moves_the_momentum():
    rate = Rate(lambda step: jnp.float32(0.1), lambda step: jnp.where(step == 0, 0.0, 0.5))
    optimizer = build_optimizer("sgd", rate)
    w = jnp.array([0.0])
    state = optimizer.init(w)
    found = []
    for _ in range(3):
        updates, state = optimizer.update(jnp.array([1.0]), state, w)
        found.append(float(updates[0]))
    np.testing.assert_allclose(found, [-0.1, -0.15, -0.175], rtol=1e-6)


def test_updates_are_scaled_by_layer():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    plain, scaled = (build_optimizer("sgd", 0.1, scales=scales) for scales in (None, {"a": 0.25, "b": 1.0}))
    updates = [o.update(params, o.init(params), params)[0] for o in (plain, scaled)]
    np.testing.assert_allclose(updates[1]["a"], 0.25 * updates[0]["a"])
    np.testing.assert_array_equal(updates[1]["b"], updates[0]["b"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_optimizer("admw", 0.1), "optimizer='admw' is unknown; did you mean 'adamw'?"),
        (lambda: build_optimizer("adamw", 0.1, {"b3": 0.5}), "argument of adamw='b3' is unknown"),
        (lambda: build_optimizer("adamw", 0.1, {"b1": 1.5}), r"b1=1.5 must be in \[0, 1\]"),
        (lambda: build_optimizer("sgd", 0.1, weight_decay_on="some"), "weight_decay_on='some'"),
        (lambda: build_optimizer("prodigy", 0.1, weight_decay=0.1, weight_decay_on="matrices"), "prodigy decays all"),
        (lambda: build_optimizer("sign_sgd", Rate(optax.constant_schedule(0.1), optax.constant_schedule(0.9))),
         "sign_sgd has no momentum"),
        (lambda: build_optimizer("schedule_free_sgd", 0.1), "evaluates other weights than it trains"),
    ],
)  # fmt: skip
def test_what_an_optimizer_cannot_do_is_said(call, message):
    with pytest.raises(InputError, match=message):
        call()
