import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses, models
from piat_jax.core.checks import InputError
from piat_jax.core.rng import named_key
from piat_jax.core.types import AdversarialBatch, Variables
from piat_jax.objectives import AWP, PGDAT, TRADES
from piat_jax.objectives.rat import RAT, noisy_convolutions, soft_labels
from piat_jax.objectives.rpat import RPAT
from tests.objectives.stub import (
    ATTACK,
    BATCH,
    CE_CLEAN,
    CLEAN,
    CONTEXT,
    CURVED,
    IMAGES,
    KL,
    OTHER,
    PA,
    PARAMS,
    STATE,
    P,
    Stub,
    Y,
    gradient,
    make,
    perturb,
    train_forwards,
    value,
)

HEAD = ("w",)
run = jax.jit(value)


def table(v, kappa):
    v = (v - v.min()) / (v - v.min()).sum()
    rows = np.stack([np.where(np.arange(len(v)) == c, 0, v) for c in range(len(v))])
    return kappa * rows / rows.sum(1, keepdims=True) + (1 - kappa) * np.eye(len(v))


def head_gradient(images, p):
    x = np.asarray(images, np.float64).reshape(4, -1)
    features = (x - x.mean(0)) * np.asarray(PARAMS["scale"], np.float64)
    return (features.T @ (p - np.eye(3)[Y]) / 4).sum(0)


def divergence(v, p, kappa):
    t = table(v, kappa)[Y]
    return (np.where(t > 0, t * np.log(np.where(t > 0, t, 1) / p), 0)).sum(1).mean()


G, H = head_gradient(IMAGES, P), head_gradient(OTHER, PA)


def expected(share, kappa, beta):
    first = divergence(abs(G) - abs(H), PA, kappa) + divergence(abs(H) - abs(G), P, kappa)
    second = divergence(H**2 - G**2, PA, kappa) + divergence(H**2 - G**2, P, kappa)
    return (1 - share) * CE_CLEAN + share * first / 2 + share / 2 * second / 2 + beta * KL


@pytest.mark.parametrize(("share", "kappa", "beta"), [(0.2, 0.8, 6.0), (0.7, 0.5, 1.0)])
def test_values(share, kappa, beta):
    for shared in (False, True):
        objective = RAT(make(TRADES, beta=beta), share=share, kappa=kappa, head=HEAD, shared_forwards=shared)
        np.testing.assert_allclose(run(objective, batch=CURVED)[0], expected(share, kappa, beta), rtol=2e-4)


def test_without_its_share_it_is_trades():
    ours, theirs = (run(o, batch=CURVED)[0] for o in (RAT(make(TRADES), share=0.0, head=HEAD), make(TRADES)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_soft_labels_are_constants():
    objective = RAT(make(TRADES, beta=0.0), share=1.0, head=HEAD)
    ours = gradient(objective, PARAMS, CURVED)[0]["w"]
    # Towards a constant t, the gradient of KL(t || p) by the logits is p - t.
    first, second = abs(G) - abs(H), H**2 - G**2
    ga = (PA - table(first, 0.8)[Y]) / 2 + (PA - table(second, 0.8)[Y]) / 4
    gc = (P - table(-first, 0.8)[Y]) / 2 + (P - table(second, 0.8)[Y]) / 4
    expected = 0
    for images, by_logits in ((OTHER, ga), (IMAGES, gc)):
        x = np.asarray(images, np.float64).reshape(4, -1)
        expected += ((x - x.mean(0)) * np.asarray(PARAMS["scale"], np.float64)).T @ by_logits / 4
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


def test_the_table():
    v = jnp.array([3.0, 1.0, 2.0])
    expected = [[0.2, 0, 0.8], [1.6 / 3, 0.2, 0.8 / 3], [0.8, 0, 0.2]]
    np.testing.assert_allclose(soft_labels(v, 0.8), expected, rtol=1e-6)
    # Rows that are 0/0 in the code: all values equal, or none above the least but the row's own.
    np.testing.assert_allclose(soft_labels(jnp.ones(5), 0.8), 0.2 * np.ones((5, 5)), rtol=1e-6)
    np.testing.assert_allclose(soft_labels(jnp.array([2.0, 1.0]), 0.7), [[0.3, 0.7], [0.7, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(soft_labels(1e-12 * v, 0.8), expected, rtol=1e-4)


def test_equal_images_leave_no_nan():
    ours, aux = gradient(RAT(make(TRADES), head=HEAD), PARAMS, AdversarialBatch(CLEAN, IMAGES))
    assert np.all(np.isfinite(ours["w"]))
    assert np.all(np.isfinite(list(aux.metrics.values())))


def test_train_forwards_in_order():
    assert train_forwards(perturb, RAT(make(TRADES), head=HEAD)) == ""
    mean = np.asarray(STATE["mean"], np.float64)
    for objective, order in (
        (RAT(make(TRADES), head=HEAD), "caacacac"),
        (RAT(make(TRADES, clean_forwards=1), shared_forwards=True, head=HEAD), "ca"),
        (RAT(RPAT(make(TRADES)), head=HEAD), "caacacacm"),
    ):
        # The last two are those of the head's gradients, whose statistics are dropped.
        assert train_forwards(value, objective, PARAMS, BATCH) == order + "ca"
        mean = np.asarray(STATE["mean"], np.float64)
        for tag in order:
            images = {"c": IMAGES, "a": BATCH.images, "m": (IMAGES + BATCH.images) / 2}[tag]
            mean = 0.9 * mean + 0.1 * np.asarray(images, np.float64).reshape(4, -1).mean(0)
        np.testing.assert_allclose(value(objective)[1].model_state["mean"], mean, rtol=1e-5)


class Convolved(Stub):
    """The stub with a convolution kernel added to its matrix."""

    def apply(self, params, model_state, images, *, train, key=None):
        w = params["w"] + params["conv"][0, 0]
        return super().apply({**params, "w": w}, model_state, images, train=train)


CONVOLVED = {**PARAMS, "conv": jnp.zeros((1, 1, 2, 3))}


def test_the_attack_sees_noisy_convolutions():
    inside = make(TRADES, model=Convolved(), attack=ATTACK)
    craft = jax.jit(perturb)
    plain = craft(inside, CONVOLVED).images
    np.testing.assert_array_equal(craft(RAT(inside, noise=0.0, head=HEAD), CONVOLVED).images, plain)
    noisy = noisy_convolutions(CONVOLVED, 30.0, named_key(CONTEXT.key, "RAT"))
    ours = craft(RAT(inside, noise=30.0, head=HEAD), CONVOLVED)
    np.testing.assert_allclose(ours.images, craft(inside, noisy).images, atol=1e-6)
    assert np.any(ours.images != plain)
    other = craft(RAT(inside, noise=30.0, head=HEAD), CONVOLVED, context=CONTEXT._replace(key=jax.random.key(5)))
    assert np.any(ours.images != other.images)


def test_noise_goes_to_convolutions_alone():
    params = {"conv": jnp.ones((3, 3, 8, 64)), "dense": jnp.ones((8, 64)), "bias": jnp.ones(64)}
    noisy = jax.jit(noisy_convolutions)(params, 1e-4, jax.random.key(0))
    np.testing.assert_array_equal(noisy["dense"], params["dense"])
    np.testing.assert_array_equal(noisy["bias"], params["bias"])
    np.testing.assert_allclose(np.std(noisy["conv"]), 1e-4, rtol=0.05)


def test_with_awp_inside_v_comes_from_trades_and_outside_from_rat():
    def v(objective):
        state = objective.init(Variables(PARAMS, STATE), IMAGES[:1], key=jax.random.key(0))
        moved = jax.jit(objective.perturb_weights)(PARAMS, STATE, state, CURVED, CONTEXT)
        return moved["w"] - PARAMS["w"]

    plain = v(AWP(make(TRADES, beta=0.1)))
    options = RAT.variants["awp"] | {"share": 1.0, "head": HEAD}
    np.testing.assert_allclose(v(RAT(AWP(make(TRADES, beta=0.1)), **options)), plain, atol=1e-6)
    assert np.abs(v(AWP(RAT(make(TRADES, beta=0.1), **options))) - plain).max() > 1e-2


def test_the_default_head_is_that_of_our_models():
    model = models.create("mlp", num_classes=3, hidden=(5,))
    variables = model.init(jax.random.key(0), IMAGES)
    objective = RAT(make(TRADES, model=model))
    assert objective.init(variables, IMAGES[:1], key=jax.random.key(0)).own == ()

    def mean_cross_entropy(params):
        logits, _ = model.apply(params, variables.model_state, IMAGES, train=True)
        return jnp.mean(losses.cross_entropy(logits, CLEAN.labels))

    kernel = jax.grad(mean_cross_entropy)(variables.params)["linear"]["dense"]["kernel"]
    ours = objective.head_gradient(variables, IMAGES, CLEAN.labels)
    np.testing.assert_allclose(ours, kernel.sum(0), rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match=re.escape("('linear', 'dense', 'kernel') (5, 3)")):
        dataclasses.replace(objective, head=HEAD).init(variables, IMAGES[:1], key=jax.random.key(0))


def test_only_trades_may_be_inside():
    for inside in (make(PGDAT), AWP(make(PGDAT))):
        with pytest.raises(InputError, match="cannot go around PGDAT"):
            RAT(inside, head=HEAD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share=1.5 must be in [0, 1]"),
        ({"kappa": -0.1}, "kappa=-0.1 must be at least 0"),
        ({"noise": -1e-4}, "noise=-0.0001 must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        RAT(make(TRADES), **options)
