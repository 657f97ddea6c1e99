import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.attacks import pgd
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.types import AdversarialBatch, Batch, Context, Variables
from piat_jax.objectives import ALP, METHODS, NMSE, PGDAT, TRADES

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(0.2, 0.4, size=(4, 1, 2, 1)), jnp.float32)
ADVERSARIAL = IMAGES + 0.5
LABELS = jnp.array([0, 1, 2, 0])
CLEAN = Batch(IMAGES, LABELS, jnp.arange(4))
BATCH = AdversarialBatch(CLEAN, ADVERSARIAL)
CONTEXT = Context(jax.random.key(0), jnp.int32(0))
PARAMS = {"w": jnp.asarray(12 * RNG.normal(size=(2, 3)), jnp.float32), "scale": jnp.array([1.5, 0.7])}
STATE = {"mean": jnp.array([0.1, 0.6])}
LOG = []


@dataclasses.dataclass(frozen=True)
class Stub:
    """A linear model on inputs centred by a running mean; it logs each forward: train or eval, clean or adversarial."""

    def init(self, key, images):
        return Variables(PARAMS, STATE)

    def apply(self, params, model_state, images, *, train, key=None):
        x = images.reshape(len(images), -1)
        # Crafting stays within 0.1 of the clean images, which lie below 0.4; the adversarial ones lie above 0.7.
        tag = jnp.where(jnp.mean(x) > 0.55, ord("a"), ord("c"))
        LOG.append((train, tag))
        mean = x.mean(0) if train else model_state["mean"]
        logits = ((x - mean[None]) * params["scale"][None]) @ params["w"]
        return logits, {"mean": 0.9 * model_state["mean"] + 0.1 * mean} if train else model_state


MODEL = Stub()
ATTACK = bind(pgd, eps=0.1, step_size=0.05, steps=3)


def make(method, **options):
    return method(**{"model": MODEL, "attack": ATTACK, **options})


def value(objective, params=PARAMS, batch=BATCH):
    return objective.loss(params, STATE, (), batch, CONTEXT)


gradient = jax.jit(jax.grad(value, argnums=1, has_aux=True))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(images):
    x = np.asarray(images, np.float64).reshape(4, -1)
    return (x - x.mean(0)) * np.asarray(PARAMS["scale"]) @ np.asarray(PARAMS["w"], np.float64)


OTHER = jnp.asarray(RNG.uniform(0.7, 0.9, size=(4, 1, 2, 1)), jnp.float32)
Z, ZA = logits(IMAGES), logits(OTHER)
CURVED = AdversarialBatch(CLEAN, OTHER)
P, PA = softmax(Z), softmax(ZA)
ROWS, Y = np.arange(4), np.asarray(LABELS)
CE, CE_CLEAN = -np.log(PA[ROWS, Y]).mean(), -np.log(P[ROWS, Y]).mean()
PAIRING = ((Z - ZA) ** 2).sum(1).mean()
KL = (P * np.log(P / PA)).sum(1).mean()


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


NORMALIZED = ((1 - P[ROWS, Y]) * ((unit(Z) - unit(ZA)) ** 2).sum(1)).mean()
VALUES = {
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
    LOG.clear()
    _, aux = value(objective)
    assert "".join(chr(tag) for train, tag in LOG if train) == order
    assert all(train for train, _ in LOG)
    mean = np.asarray(STATE["mean"], np.float64)
    for tag in order:
        images = np.asarray({"c": IMAGES, "a": ADVERSARIAL}[tag], np.float64)
        mean = 0.9 * mean + 0.1 * images.reshape(4, -1).mean(0)
    np.testing.assert_allclose(aux.model_state["mean"], mean, rtol=1e-5)


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


def perturb(objective, params=PARAMS, state=STATE, batch=CLEAN, context=CONTEXT):
    return objective.perturb(Variables(params, state), (), batch, context)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_crafting(method):
    run = jax.jit(perturb)
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
    other = run(make(PGDAT, attack=one), context=Context(jax.random.key(1), jnp.int32(0))).images
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
        (TRADES, {"clean_forwards": 3}, "clean_forwards=3 is unknown; choose one of 1, 2"),
        (NMSE, {"mu": -5.0}, "mu=-5.0 must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(method, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make(method, **options)
