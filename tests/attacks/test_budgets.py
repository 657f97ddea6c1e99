"""PGD's options per example: how many steps, when to stop, how much noise, how wide a start."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import Counted, bind, counting, mi_fgsm, pgd, pgd_counted
from piat_jax.core.checks import InputError
from piat_jax.core.rng import example_keys, named_key

KEY = jax.random.key(0)
RNG = np.random.default_rng(3)
B, STEPS = 24, 5
IMAGES = jnp.asarray(RNG.uniform(size=(B, 1, 2, 2)), jnp.float32).at[0, 0, 0].set(0.0).at[1, 0, 0].set(1.0)
WEIGHTS = (jnp.asarray(4 * RNG.normal(size=(4, 5)), jnp.float32), jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32))


@jax.jit
def network(x):
    return jnp.sin(x.reshape(len(x), -1) @ WEIGHTS[0]) @ WEIGHTS[1]


# About every other example begins correct, and many change sides on the way.
LABELS = jnp.where(jnp.arange(B) % 2 == 0, jnp.argmax(network(IMAGES), 1), jnp.arange(B) % 3)
BASE = {"eps": 0.3, "step_size": 0.08, "start": "none", "steps": STEPS}


@functools.partial(jax.jit, static_argnames=("attack", "steps", "start", "restarts", "keep", "box"))
def run(indices=None, images=IMAGES, labels=LABELS, attack=pgd, **options):
    return attack(network, images, labels, key=KEY, indices=indices, **{**BASE, **options})


def correct(x):
    return np.asarray(losses.correct(network(x), LABELS))


def iterates():
    """x_0 to x_K of plain PGD, each from a run of that many steps."""
    return [np.asarray(IMAGES)] + [np.asarray(run(steps=k)) for k in range(1, STEPS + 1)]


def test_a_budget_of_k_is_a_run_of_k_steps():
    budget = jnp.arange(B) % STEPS + 1
    expected = np.stack([iterates()[k][i] for i, k in enumerate(budget)])
    np.testing.assert_allclose(run(step_budget=budget), expected, atol=1e-6)
    images, counts, taken = run(attack=pgd_counted, step_budget=budget)
    np.testing.assert_array_equal(taken, budget)
    np.testing.assert_allclose(images, expected, atol=1e-6)
    right = np.stack([correct(x) for x in iterates()])
    np.testing.assert_array_equal(counts, [right[:k, i].sum() for i, k in enumerate(budget)])


def test_the_best_of_a_budgeted_run_is_among_its_iterates():
    budget = jnp.arange(B) % STEPS + 1
    best = np.asarray(run(step_budget=budget, keep="best"))
    for i, k in enumerate(np.asarray(budget)):
        assert min(np.abs(best[i] - x[i]).max() for x in iterates()[1 : k + 1]) < 1e-5


def test_an_example_stops_when_it_is_out_of_patience():
    points = iterates()
    right = np.stack([correct(x) for x in points])
    patience = jnp.arange(B) // 2 % 5
    stops = []
    for i, tau in enumerate(np.asarray(patience)):
        wrong = np.flatnonzero(~right[:STEPS, i])
        stops.append(wrong[tau] if len(wrong) > tau else STEPS)
    assert set(stops) == set(range(STEPS + 1))  # every case occurs
    images, counts, _ = run(attack=pgd_counted, patience=patience)
    np.testing.assert_allclose(images, [points[s][i] for i, s in enumerate(stops)], atol=1e-6)
    np.testing.assert_array_equal(counts, [right[:s, i].sum() for i, s in enumerate(stops)])
    assert counts.dtype == jnp.int32


def test_nothing_set_and_everything_set_to_no_effect_are_the_same():
    plain = run(start="uniform")
    free = run(start="uniform", step_budget=jnp.full(B, STEPS), start_eps=BASE["eps"], noise=jnp.array(0.0))
    np.testing.assert_allclose(free, plain, atol=1e-6)
    np.testing.assert_allclose(run(start="uniform", patience=STEPS), plain, atol=1e-6)
    images, counts, taken = run(attack=pgd_counted, start="uniform")
    np.testing.assert_array_equal(taken, np.full(B, STEPS))
    np.testing.assert_allclose(images, plain, atol=1e-6)
    assert 0 < counts.sum() < B * STEPS


def test_no_patience_returns_the_start_of_what_is_misclassified():
    x = np.asarray(run(patience=0))
    wrong = ~correct(IMAGES)
    assert 0 < wrong.sum() < B
    np.testing.assert_array_equal(x[wrong], IMAGES[wrong])
    assert np.all(np.abs(x[~wrong] - IMAGES[~wrong]).max((1, 2, 3)) > 0.01)
    # An unclipped start may be the result, so it is brought inside first.
    edge = jnp.round(IMAGES)
    x = run(images=edge, patience=0, start="normal", eps=5e-4, step_size=1e-4)
    assert x.min() >= 0
    assert x.max() <= 1
    assert np.abs(x - edge).max() <= 5e-4 + 1e-6


def test_noise_is_drawn_per_example_and_step_and_projected():
    def draws(step):
        keys = example_keys(KEY, jnp.arange(B) + 70)
        return jnp.stack([jax.random.normal(jax.random.fold_in(named_key(k, "noise"), step), (1, 2, 2)) for k in keys])

    still = {"step_size": 0.0, "steps": 2, "box": None}
    omega = jnp.where(jnp.arange(B) < 12, 0.01, 0.02)
    moved = run(jnp.arange(B) + 70, noise=omega, step_budget=jnp.arange(B) % 2 + 1, eps=1.0, **still) - IMAGES
    expected = draws(0) + jnp.where(jnp.arange(B) % 2 == 1, 1, 0)[:, None, None, None] * draws(1)
    np.testing.assert_allclose(moved, omega[:, None, None, None] * expected, atol=1e-6)
    assert np.abs(run(noise=1.0, step_budget=2, eps=0.1, **still) - IMAGES).max() <= 0.1 + 1e-6


def test_the_start_has_its_own_radius():
    narrow = np.abs(run(start="uniform", start_eps=0.01, step_size=0.0) - IMAGES)
    assert 0.005 < narrow.max() <= 0.01 + 1e-6
    eps = jnp.linspace(0.01, 0.3, B)
    wide = np.abs(run(start="uniform", start_eps=0.3, eps=eps, step_size=0.0) - IMAGES).max((1, 2, 3))
    assert np.all(wide <= eps + 1e-6)
    assert np.sum(wide > eps - 1e-6) > B / 2  # held back at the rim


def test_patience_alone_is_what_is_counted():
    patience = jnp.arange(B) // 2 % 5
    np.testing.assert_array_equal(run(patience=patience), run(attack=pgd_counted, patience=patience).images)


def test_an_attack_in_its_counting_form():
    attack = bind(pgd, eps=0.2, step_size=jnp.float32(0.05), restarts=1, keep="last")
    counted = counting(attack)(network, IMAGES, LABELS, key=KEY, steps=3)
    expected = pgd_counted(network, IMAGES, LABELS, key=KEY, eps=0.2, step_size=jnp.float32(0.05), steps=3)
    jax.tree.map(np.testing.assert_array_equal, counted, expected)
    assert type(counted) is Counted
    for other, message in (
        (bind(pgd, restarts=2), "iterates are counted for one run to its end, but attack has {'restarts': 2, 'keep':"),
        (bind(mi_fgsm), "attack mi_fgsm does not count iterates; give bind(pgd, ...)"),
        (pgd, "attack function does not count iterates; give bind(pgd, ...)"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            counting(other)


def test_the_old_way_of_counting_warns():
    with pytest.warns(DeprecationWarning, match=r"pgd\(count_correct=True\) is called pgd_counted now"):
        old = pgd(network, IMAGES, LABELS, key=KEY, count_correct=True, **BASE)
    jax.tree.map(np.testing.assert_array_equal, old, tuple(pgd_counted(network, IMAGES, LABELS, key=KEY, **BASE)))
    with pytest.raises(InputError, match="count_correct follows one run to its end"):
        pgd(network, IMAGES, LABELS, key=KEY, count_correct=True, keep="best", **BASE)


def test_no_gradient_flows_through():
    def total(images):
        return sum(
            jnp.sum(attack(network, images, LABELS, key=KEY, **BASE, **options))
            for attack, options in (
                (pgd, {"patience": 1}),
                (pgd, {"step_budget": 2}),
                (lambda *a, **k: pgd_counted(*a, **k).images, {"patience": 1}),
            )
        )

    assert not np.any(jax.jit(jax.grad(total))(IMAGES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_budget": jnp.arange(B)}, "must be in [1, 5]"),
        ({"step_budget": 6}, "step_budget=6 must be in [1, 5]"),
        ({"patience": -1}, "patience=-1 must be at least 0"),
        ({"noise": -0.1}, "noise=-0.1 must be at least 0"),
        ({"start_eps": 8}, "start_eps=8 must be in [0, 1]; did you mean 8/255?"),
        (
            {"patience": 1, "restarts": 2},
            "patience follows one run to its end: restarts=2, keep='last' must be 1, 'last'",
        ),
        ({"patience": 1, "keep": "best"}, "patience follows one run to its end"),
        ({"patience": 1, "l2_rule": "mine"}, "l2_rule='mine' is unknown"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        bind(pgd, **BASE)(network, IMAGES, LABELS, key=KEY, **options)
