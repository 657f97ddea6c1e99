"""Several norms at once: MAX, AVG, SAT, E-AT and MSD, and the L1 steps they need."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import apgd_ascent, msd, n_fgsm, pgd
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.norms import norm as length
from piat_jax.core.norms import sparse_direction
from piat_jax.core.rng import named_key
from piat_jax.core.types import Aux, Variables
from piat_jax.objectives import PGDAT, TRADES, MultiNorm
from tests.objectives.stub import ATTACK, CLEAN, CONTEXT, IMAGES, LABELS, LOG, MODEL, PARAMS, STATE, make, state_of

VARIABLES = Variables(PARAMS, STATE)
KEY = jax.random.key(1)
RADII = {"linf": 0.1, "l2": 0.12, "l1": 0.15}
STEPS = {"linf": 0.05, "l2": 0.04, "l1": 0.05}
FIELDS = {"eps": 0.1, "eps_l2": 0.12, "eps_l1": 0.15, "step_l2": 0.04, "step_l1": 0.05}
RNG = np.random.default_rng(0)


def logits_fn(x):
    return MODEL.apply(PARAMS, STATE, x, train=False)[0]


def alone(norm, number=0):
    """The images of PGD under one norm, with the key that the step gives."""
    key = named_key(CONTEXT._replace(key=jax.random.key(number)).key, "attack")
    options = {"norm": norm, "eps": RADII[norm], "step_size": STEPS[norm], "key": key, "indices": CLEAN.indices}
    return np.asarray(ATTACK(logits_fn, IMAGES, LABELS, **options))


def crafted(objective, number=0, state=None):
    context = CONTEXT._replace(key=jax.random.key(number))
    return objective.perturb(VARIABLES, state or state_of(objective), CLEAN, context)


def test_max_takes_the_worst_for_each_example():
    found = crafted(MultiNorm(make(PGDAT), **FIELDS))
    images = np.stack([alone(norm) for norm in RADII])
    values = np.stack([losses.cross_entropy(logits_fn(x), LABELS) for x in images])
    np.testing.assert_array_equal(found.images, images[values.argmax(0), np.arange(4)])
    assert len(set(values.argmax(0))) > 1


def test_avg_is_the_mean_of_the_losses():
    objective = MultiNorm(make(PGDAT), how="avg", **FIELDS)
    LOG.clear()
    found = crafted(objective)
    loss, _ = objective.loss(PARAMS, STATE, state_of(objective), found, CONTEXT)
    expected = []
    statistics = STATE
    for norm in RADII:
        logits, statistics = MODEL.apply(PARAMS, statistics, alone(norm), train=True)
        expected.append(float(jnp.mean(losses.cross_entropy(logits, LABELS))))
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    assert MultiNorm(make(TRADES), how="avg").forwards == (
        "clean", "adversarial", "adversarial_l2", "adversarial_l1", "clean",
    )  # fmt: skip


@pytest.mark.parametrize("by", ["batch", "example"])
def test_random_draws_a_norm(by):
    objective = MultiNorm(make(PGDAT), how="random", by=by, **FIELDS)
    step = jax.jit(lambda number: crafted(objective, number))
    seen = []
    for number in range(8):
        found = step(number)
        drawn = np.asarray(found.extra["MultiNorm"])
        for index, which in enumerate(drawn):
            np.testing.assert_allclose(found.images[index], alone(list(RADII)[which], number)[index], atol=1e-6)
        assert by == "example" or len(set(drawn)) == 1
        seen.extend(drawn)
    assert set(seen) == {0, 1, 2}


def test_errors_of_the_epoch_before_decide():
    objective = MultiNorm(make(PGDAT), how="errors", norms=("linf", "l1"), **FIELDS)
    state = state_of(objective)
    np.testing.assert_array_equal(state.own.rate, [1, 1])
    wrong = {"adversarial": jnp.asarray(np.eye(3)[(np.asarray(LABELS) + 1) % 3], jnp.float32)}
    right = {"adversarial": jnp.asarray(np.eye(3)[np.asarray(LABELS)], jnp.float32)}
    batch = crafted(objective)
    for drawn, logits in ((0, wrong), (0, right), (1, right)):
        handed = objective.hand(batch, jnp.full(4, drawn))
        state = objective.after_step(VARIABLES, state, handed, Aux(STATE, {}, logits), CONTEXT)
    np.testing.assert_array_equal(state.own.wrong, [4, 0])
    np.testing.assert_array_equal(state.own.total, [8, 4])
    state = objective.after_epoch(state, CONTEXT)
    np.testing.assert_array_equal(state.own.rate, [0.5, 0])
    np.testing.assert_array_equal(state.own.total, [0, 0])
    kept = objective.after_epoch(state, CONTEXT)
    np.testing.assert_array_equal(kept.own.rate, state.own.rate)
    drawn = [int(crafted(objective, number, state).extra["MultiNorm"][0]) for number in range(6)]
    assert drawn == [0] * 6


def test_what_does_not_fit_is_said():
    with pytest.raises(InputError, match=re.escape("norms=('linf',) must be at least two")):
        MultiNorm(make(PGDAT), norms=("linf",))
    with pytest.raises(InputError, match="how='mean' is unknown"):
        MultiNorm(make(PGDAT), how="mean")
    attack = bind(lambda logits_fn, images, labels, *, key, indices=None, eps=0.1: images, eps=0.1)
    with pytest.raises(InputError, match="MultiNorm sets the attack's 'norm'"):
        MultiNorm(make(PGDAT, attack=attack))


class TestMSD:
    def test_each_step_takes_the_best_candidate(self):
        options = {"eps": 0.1, "step_size": 0.05, "eps_l2": 0.12, "step_size_l2": 0.04}
        options |= {"eps_l1": 0.15, "step_size_l1": 0.05}
        found = msd(logits_fn, IMAGES, LABELS, steps=1, **options)
        once = {"key": KEY, "start": "none", "steps": 1}
        images = np.stack(
            [pgd(logits_fn, IMAGES, LABELS, norm=n, eps=RADII[n], step_size=STEPS[n], **once) for n in RADII]
        )
        values = np.stack([losses.cross_entropy(logits_fn(x), LABELS) for x in images])
        np.testing.assert_allclose(found, images[values.argmax(0), np.arange(4)], atol=1e-6)
        far = msd(logits_fn, IMAGES, LABELS, steps=7, **options) - IMAGES
        inside = np.stack([length(far, norm) <= radius + 1e-6 for norm, radius in RADII.items()])
        assert inside.any(axis=0).all()

    def test_errors(self):
        with pytest.raises(InputError, match=re.escape("eps_l1=-1.0")):
            msd(logits_fn, IMAGES, LABELS, eps_l1=-1.0)
        with pytest.raises(InputError, match="norm='l2'"):
            msd(logits_fn, IMAGES, LABELS, norm="l2")


class TestL1:
    def test_the_direction_is_of_the_largest_entries(self):
        gradient = jnp.asarray(RNG.normal(size=(3, 10, 10, 1)), jnp.float32)
        found = np.asarray(sparse_direction(gradient, jnp.full((3, 10, 10, 1), 0.5), 0.05)).reshape(3, -1)
        flat = np.asarray(gradient).reshape(3, -1)
        for row, g in zip(found, flat):
            largest = np.argsort(-np.abs(g))[:5]
            expected = np.zeros(100)
            expected[largest] = np.sign(g[largest]) / 5
            np.testing.assert_allclose(row, expected, rtol=1e-6)

    def test_pgd_of_a_linear_network_finds_the_best_point(self):
        weights = jnp.asarray([0.1, -3.0, 2.0, 0.5])
        linear = lambda x: jnp.stack([x.reshape(len(x), 4) @ weights, jnp.zeros(len(x))], axis=1)  # noqa: E731
        x = jnp.full((1, 2, 2, 1), 0.5)
        found = pgd(linear, x, jnp.array([0]), key=KEY, norm="l1", eps=0.7, step_size=0.2, steps=30, sparsity=0.25)
        # The steepest pixel goes to its bound, and the next one takes what is left.
        np.testing.assert_allclose(found.ravel(), [0.5, 1.0, 0.3, 0.5], atol=1e-3)

    def test_starts_are_in_the_ball(self):
        images = jnp.asarray(RNG.uniform(size=(32, 6, 6, 1)), jnp.float32)
        flat = lambda x: jnp.zeros((len(x), 2))  # noqa: E731
        found = pgd(flat, images, jnp.zeros(32, int), key=KEY, norm="l1", eps=2.0, step_size=0.5, steps=1)
        sizes = np.asarray(length(found - images, "l1"))
        assert sizes.max() <= 2 + 1e-5
        assert 0.2 < sizes.mean() < 1.5

    def test_only_the_unit_box(self):
        with pytest.raises(InputError, match=re.escape("box=(0.0, 2.0) is not supported with norm='l1'")):
            pgd(logits_fn, IMAGES, LABELS, key=KEY, norm="l1", eps=1.0, box=(0.0, 2.0))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_apgd_for_training_takes_the_highest_loss_and_all_its_steps(norm):
    eps = 3 * RADII[norm]
    options = {"key": KEY, "eps": eps, "norm": norm}
    images = jax.jit(lambda steps=12: apgd_ascent(logits_fn, IMAGES, LABELS, steps=12, **options))()
    assert float(length(images - IMAGES, norm).max()) <= eps + 1e-5
    value = losses.cross_entropy(logits_fn(images), LABELS)
    by_pgd = pgd(logits_fn, IMAGES, LABELS, steps=12, step_size=eps / 4, **options)
    # On two pixels the sparse phases of L1 are of little use.
    assert norm == "l1" or bool(jnp.all(value >= losses.cross_entropy(logits_fn(by_pgd), LABELS) - 0.05))
    clean = losses.cross_entropy(logits_fn(IMAGES), LABELS)
    assert bool(jnp.all(value > clean))
    least = apgd_ascent(logits_fn, IMAGES, LABELS, steps=12, loss=lambda z, y: -losses.cross_entropy(z, y), **options)
    assert bool(jnp.all(losses.cross_entropy(logits_fn(least), LABELS) < clean))


def test_attacks_of_training_are_those_of_configs():
    from piat_jax.attacks import ATTACKS
    from piat_jax.attacks.registry import attack_fields

    assert ATTACKS["n_fgsm"] is n_fgsm
    assert attack_fields("apgd") == {"steps": 10, "start": "random", "rho": 0.75}
    assert set(attack_fields("msd")) >= {"eps_l2", "step_size_l1", "sparsity"}
