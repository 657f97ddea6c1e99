import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.objectives import AWP, PGDAT, SOVR, TRADES
from piat_jax.objectives.sovr import one_vs_rest_loss, smallest
from tests.objectives.numeric import check, cross_entropy, divergence
from tests.objectives.stub import (
    CURVED,
    PARAMS,
    ROWS,
    ZA,
    Y,
    gradient,
    make,
    perturb,
    softmax,
    train_forwards,
    value,
)

RIVALS = np.where(np.arange(3)[None] == Y[:, None], -np.inf, ZA).max(1)
ORDER = np.argsort(ZA[ROWS, Y] - RIVALS)


def one_vs_rest(z):
    sign = np.where(np.arange(3)[None] == Y[:, None], -1.0, 1.0)
    return np.log1p(np.exp(sign * z)).sum(1)


def switched(count):
    return np.isin(ROWS, ORDER[:count])


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.3, 1), (0.5, 2), (1.0, 4)])
def test_loss_and_gradient_around_pgd_at(share, count):
    def loss(clean, adversarial, w):
        return np.where(switched(count), 0.7 * one_vs_rest(adversarial), cross_entropy(adversarial, Y))

    objective = SOVR(make(PGDAT), share=share, weight=0.7)
    check(objective, loss)
    np.testing.assert_allclose(value(objective, batch=CURVED)[1].metrics["switched"], count / 4)


def test_around_trades_the_divergence_is_switched():
    def loss(clean, adversarial, w):
        kl = 6 * divergence(softmax(clean), softmax(adversarial))
        return cross_entropy(clean, Y) + np.where(switched(2), 0.4 * one_vs_rest(adversarial), kl)

    check(SOVR(make(TRADES), share=0.5), loss)


def test_of_equal_margins_the_first_are_switched():
    assert smallest(jnp.array([2.0, 1.0, 1.0, 1.0]), 0.5).tolist() == [False, True, True, False]
    assert smallest(jnp.zeros(5), 0.4).tolist() == [True, True, False, False, False]


def test_soft_labels_mix_the_losses_of_hard_ones():
    z = jnp.asarray(ZA, jnp.float32)
    labels, others = jnp.asarray(Y), (jnp.asarray(Y) + 1) % 3
    soft = 0.7 * jax.nn.one_hot(labels, 3) + 0.3 * jax.nn.one_hot(others, 3)
    expected = 0.7 * one_vs_rest_loss(z, labels) + 0.3 * one_vs_rest_loss(z, others)
    np.testing.assert_allclose(one_vs_rest_loss(z, soft), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    objective = SOVR(make(PGDAT), share=0.5)
    assert np.isfinite(value(objective, params, CURVED)[0])
    assert np.all(np.isfinite(gradient(objective, params, CURVED)[0]["w"]))


def test_forwards_and_crafting_are_those_inside():
    for method, order in ((PGDAT, "a"), (TRADES, "cac")):
        assert train_forwards(value, SOVR(make(method))) == order
    inside, around = (jax.jit(perturb)(o).images for o in (make(PGDAT), SOVR(make(PGDAT))))
    np.testing.assert_array_equal(inside, around)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"share": 1.5}, "share=1.5 must be in [0, 1]"), ({"weight": -1.0}, "weight=-1.0 must be at least 0")],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        SOVR(make(PGDAT), **options)


def test_parts_of_a_batch_are_refused():
    with pytest.raises(InputError, match="SOVR switches the smallest margins of the full batch; leave it at 1"):
        AWP(SOVR(make(PGDAT))).check_part(2)
