import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.objectives.mart import MART, weighted_divergence
from tests.objectives.stub import (
    BATCH,
    CURVED,
    IMAGES,
    PA,
    PARAMS,
    ROWS,
    STATE,
    P,
    Y,
    gradient,
    make,
    perturb,
    train_forwards,
    value,
)

OTHERS = np.where(np.arange(3)[None] == Y[:, None], 0, PA).max(1)
BCE = (-np.log(PA[ROWS, Y]) - np.log(1.0001 - OTHERS + 1e-12)).mean()
DIVERGENCE = ((1.0000001 - P[ROWS, Y]) * (P * (np.log(P) - np.log(PA + 1e-12))).sum(1)).mean()


@pytest.mark.parametrize("beta", [5.0, 0.5])
def test_value_and_metrics(beta):
    loss, aux = jax.jit(value)(make(MART, beta=beta), batch=CURVED)
    np.testing.assert_allclose(loss, BCE + beta * DIVERGENCE, rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["regularizer"], DIVERGENCE, rtol=1e-4)


def test_train_forwards_in_order():
    assert train_forwards(perturb, make(MART)) == ""
    assert train_forwards(value, make(MART), PARAMS, BATCH) == "ca"
    mean = np.asarray(STATE["mean"], np.float64)
    for images in (IMAGES, BATCH.images):
        mean = 0.9 * mean + 0.1 * np.asarray(images, np.float64).reshape(4, -1).mean(0)
    np.testing.assert_allclose(value(make(MART))[1].model_state["mean"], mean, rtol=1e-5)


def test_nothing_is_detached():
    ours = gradient(make(MART), PARAMS, CURVED)[0]["w"]
    direction = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)), jnp.float32)
    run = jax.jit(lambda h: value(make(MART), {**PARAMS, "w": PARAMS["w"] + h * direction}, CURVED)[0])
    np.testing.assert_allclose(jnp.sum(ours * direction), (run(1e-2) - run(-1e-2)) / 2e-2, rtol=2e-2)


def test_the_weight_of_the_divergence_carries_gradient():
    z, other, label = jnp.array([[1.0, 0.0, -1.0]]), jnp.array([[-1.0, 0.5, 1.0]]), jnp.array([0])
    run = jax.jit(jax.grad(lambda z: weighted_divergence(z, other, label).sum()))
    p, q = (np.exp(v) / np.exp(v).sum() for v in (np.array([1.0, 0.0, -1.0]), np.array([-1.0, 0.5, 1.0])))
    ratio = np.log(p / q)
    through_kl = (1 - p[0]) * p * (ratio - (p * ratio).sum())
    through_weight = -p[0] * (np.eye(3)[0] - p) * (p * ratio).sum()
    np.testing.assert_allclose(run(z)[0], through_kl + through_weight, rtol=1e-4)
    assert np.abs(through_weight).max() > 0.1


def test_a_misclassified_certainty_costs_the_published_constants():
    # (1.0000001 - 0) KL(one-hot || one-hot elsewhere) ends at log(1e-12), not at infinity.
    value = weighted_divergence(jnp.array([[0.0, 500.0]]), jnp.array([[500.0, 0.0]]), jnp.array([0]))
    np.testing.assert_allclose(value, -np.log(1e-12), rtol=1e-5)


def test_negative_beta_is_refused():
    with pytest.raises(InputError, match=re.escape("beta=-5.0 must be at least 0")):
        make(MART, beta=-5.0)
