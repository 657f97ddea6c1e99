import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.types import AdversarialBatch, Batch
from piat_jax.objectives import ALP, NMSE, PGDAT, TRADES, Standard
from tests.objectives.stub import (
    ADVERSARIAL,
    ATTACK,
    BATCH,
    CE,
    CE_CLEAN,
    CLEAN,
    CONTEXT,
    CURVED,
    IMAGES,
    KL,
    LABELS,
    LOG,
    NORMALIZED,
    PA,
    PAIRING,
    PARAMS,
    STATE,
    ZA,
    Y,
    Z,
    gradient,
    make,
    perturb,
    softmax,
    train_forwards,
    unit,
    value,
)

S = 0.3
SMOOTHED = -np.mean((1 - S) * np.log(PA[np.arange(4), Y]) + S / 2 * (np.log(PA).sum(1) - np.log(PA[np.arange(4), Y])))
VALUES = {
    "smoothed": (make(PGDAT, label_smoothing=S), SMOOTHED, None),
    "pgd_at": (make(PGDAT), CE, None),
    "alp": (make(ALP), CE + 0.5 * PAIRING, PAIRING),
    "alp_clean": (make(ALP, weight=2.0, clean_weight=0.3), CE + 2 * PAIRING + 0.3 * CE_CLEAN, PAIRING),
    "trades": (make(TRADES), CE_CLEAN + 6 * KL, KL),
    "trades_once": (make(TRADES, beta=2.0, clean_forwards=1), CE_CLEAN + 2 * KL, KL),
    "nmse": (make(NMSE), CE + 5 * NORMALIZED, NORMALIZED),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_and_metrics(name):
    objective, expected, regularizer = VALUES[name]
    loss, aux = value(objective, batch=CURVED)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["loss"], expected, rtol=1e-4)
    assert aux.metrics["adversarial_accuracy"] == np.mean(ZA.argmax(1) == Y)
    if regularizer is not None:
        np.testing.assert_allclose(aux.metrics["regularizer"], regularizer, rtol=1e-4)
        assert aux.metrics["clean_accuracy"] == np.mean(Z.argmax(1) == Y)


@pytest.mark.parametrize(
    ("objective", "order"),
    [
        (make(PGDAT), "a"),
        (make(ALP), "ca"),
        (make(TRADES), "cac"),
        (make(TRADES, clean_forwards=1), "ca"),
        (make(NMSE), "ca"),
    ],
    ids=["pgd_at", "alp", "trades", "trades_once", "nmse"],
)
def test_train_forwards_in_order(objective, order):
    assert train_forwards(perturb, objective) == ""
    assert train_forwards(value, objective) == order
    mean = np.asarray(STATE["mean"], np.float64)
    for tag in order:
        images = np.asarray({"c": IMAGES, "a": ADVERSARIAL}[tag], np.float64)
        mean = 0.9 * mean + 0.1 * images.reshape(4, -1).mean(0)
    np.testing.assert_allclose(value(objective)[1].model_state["mean"], mean, rtol=1e-5)


def assert_equal_gradients(one, other):
    for batch in (BATCH, CURVED):
        ours, theirs = gradient(one, PARAMS, batch)[0], gradient(other, PARAMS, batch)[0]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ours, theirs)


def test_without_their_terms_they_are_pgd_at_or_clean_training():
    for plain in (make(ALP, weight=0.0), make(NMSE, mu=0.0)):
        assert_equal_gradients(plain, make(PGDAT))
    for batch in (BATCH, CURVED):
        ours, _ = gradient(make(TRADES, beta=0.0), PARAMS, batch)
        clean, _ = gradient(make(PGDAT), PARAMS, AdversarialBatch(CLEAN, IMAGES))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ours, clean)
    assert_equal_gradients(make(TRADES, clean_forwards=1), make(TRADES))


def test_gradients_reach_both_forwards_of_each_term():
    # Against a difference quotient: a detached side would be missing from it.
    for objective in (make(ALP), make(TRADES), make(NMSE)):
        ours, _ = gradient(objective, PARAMS, CURVED)
        direction = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)), jnp.float32)
        high, low = (value(objective, {**PARAMS, "w": PARAMS["w"] + h * direction}, CURVED)[0] for h in (1e-2, -1e-2))
        np.testing.assert_allclose(jnp.sum(ours["w"] * direction), (high - low) / 2e-2, rtol=2e-2)


def test_the_weight_of_nmse_can_be_held_constant():
    kept, held = (gradient(make(NMSE, weight_gradient=g), PARAMS, CURVED)[0]["w"] for g in (True, False))
    assert np.abs(kept - held).max() > 1e-2


@pytest.mark.parametrize("method", [PGDAT, ALP, TRADES, NMSE])
def test_crafting(method):
    # A function of its own: other files jit `perturb` too, and what is compiled already logs nothing.
    run = jax.jit(lambda objective: perturb(objective))
    for mode in ("eval", "train"):
        LOG.clear()
        objective = make(method, attack_batch_norm=mode)
        batch = run(objective)
        assert {train for train, _ in LOG} == {mode == "train"}
        moved = np.abs(batch.images - IMAGES).max()
        assert 0.02 < moved <= 0.1 + 1e-6
        assert batch.clean is not None
    # A constant to the loss: no gradient with respect to the weights it was crafted with.
    craft = jax.grad(lambda p: jnp.sum(perturb(make(method), p).images ** 2))
    assert not np.any(jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(jax.jit(craft)(PARAMS))]))


def test_crafting_depends_on_key_and_indices_alone():
    run = jax.jit(perturb)
    one = bind(ATTACK, steps=1, step_size=0.0)
    images = run(make(PGDAT, attack=one)).images
    order = jnp.array([2, 0, 3, 1])
    shuffled = run(make(PGDAT, attack=one), batch=Batch(IMAGES[order], LABELS[order], order)).images
    np.testing.assert_array_equal(shuffled, images[order])
    other = run(make(PGDAT, attack=one), context=CONTEXT._replace(key=jax.random.key(1))).images
    assert np.any(other != images)


def test_trades_attacks_the_divergence_from_the_clean_prediction():
    run = jax.jit(perturb)
    attack = bind(ATTACK, start="normal", norm="l2", steps=1)  # one unit step shows the gradient's direction
    images = run(make(TRADES, attack=attack)).images
    # The gradient of KL(p || p') by z' is p' - p, from the start that the named key gives each example.
    keys = example_keys(named_key(CONTEXT.key, "attack"), jnp.arange(4))
    start = np.stack([IMAGES[i] + 0.001 * jax.random.normal(keys[i], (1, 2, 1)) for i in range(4)]).astype(np.float64)
    w, scale, mean = (np.asarray(v, np.float64) for v in (PARAMS["w"], PARAMS["scale"], STATE["mean"]))
    clean, there = (softmax((np.float64(x).reshape(4, -1) - mean) * scale @ w) for x in (IMAGES, start))
    direction = unit((there - clean) @ w.T * scale).reshape(start.shape)
    np.testing.assert_allclose((images - start) / 0.05, direction, atol=0.02)
    # The labels play no part.
    again = run(make(TRADES, attack=attack), batch=CLEAN._replace(labels=(LABELS + 1) % 3)).images
    np.testing.assert_allclose(again, images, atol=1e-5)


def test_trades_may_attack_with_cross_entropy():
    attack = bind(ATTACK, start="uniform")
    ours = jax.jit(lambda: perturb(make(TRADES, attack=attack, attack_loss="cross_entropy")).images)()
    np.testing.assert_array_equal(ours, jax.jit(lambda: perturb(make(PGDAT, attack=attack)).images)())


def test_standard_training_sees_clean_images_once():
    objective = make(Standard)
    batch = perturb(objective)
    np.testing.assert_array_equal(batch.images, IMAGES)
    assert train_forwards(value, objective, PARAMS, batch) == "c"
    np.testing.assert_allclose(value(objective, batch=batch)[0], CE_CLEAN, rtol=1e-5)


def test_trades_has_nowhere_to_go_from_the_images_themselves():
    # Where p = p' is exact, so is the zero gradient.
    flat = {**PARAMS, "w": jnp.zeros((2, 3))}
    stay = perturb(make(TRADES, attack=bind(ATTACK, start="none")), flat)
    np.testing.assert_array_equal(stay.images, IMAGES)
    small = perturb(make(TRADES, attack=bind(ATTACK, start="none", norm="l2", eps=1.0, step_size=0.0)))
    np.testing.assert_allclose(small.images, IMAGES, atol=1e-6)


def test_changing_numbers_does_not_recompile():
    traces = []

    @jax.jit
    def step(objective):
        traces.append(objective)
        batch = perturb(objective)
        return value(objective, batch=batch)[0]

    for mu, eps in ((1.0, 0.05), (5.0, 0.05), (5.0, 0.1)):
        step(make(NMSE, mu=mu, attack=bind(ATTACK, eps=eps)))
    assert len(traces) == 1
    step(make(NMSE, weight_gradient=False))
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (PGDAT, {"attack_batch_norm": "evaluation"}, "attack_batch_norm='evaluation' is unknown"),
        (ALP, {"weight": -1.0}, "weight=-1.0 must be at least 0"),
        (ALP, {"clean_weight": float("nan")}, "clean_weight=nan must be at least 0"),
        (TRADES, {"beta": -6.0}, "beta=-6.0 must be at least 0"),
        (PGDAT, {"label_smoothing": 1.5}, "label_smoothing=1.5 must be in [0, 1]"),
        (TRADES, {"attack_loss": "ce"}, "attack_loss='ce' is unknown"),
        (TRADES, {"clean_forwards": 3}, "clean_forwards=3 is unknown; choose one of 1, 2"),
        (NMSE, {"mu": -5.0}, "mu=-5.0 must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(method, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make(method, **options)
