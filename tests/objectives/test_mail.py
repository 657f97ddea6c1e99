import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.objectives import AWP, PGDAT, TRADES
from piat_jax.objectives.mail import MAIL
from piat_jax.objectives.mart import MART
from tests.objectives.stub import (
    BATCH,
    CE_CLEAN,
    CONTEXT,
    CURVED,
    PA,
    PARAMS,
    ROWS,
    P,
    Y,
    gradient,
    make,
    perturb,
    train_forwards,
    value,
)

OTHERS = np.where(np.arange(3)[None] == Y[:, None], 0, PA).max(1)
MARGIN = OTHERS - PA[ROWS, Y]
ADVERSARIAL = -np.log(PA[ROWS, Y])
KL = (P * np.log(P / PA)).sum(1)
BCE = ADVERSARIAL - np.log(1.0001 - OTHERS + 1e-12)
DIVERGENCE = ((1.0000001 - P[ROWS, Y]) * (P * (np.log(P) - np.log(PA + 1e-12))).sum(1)).mean()
LATE = CONTEXT._replace(epoch=jnp.int32(76), epochs=jnp.int32(120))
run = jax.jit(value)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


SHARP, FLAT = 3 * sigmoid(10 * (MARGIN - 0.5)), 3 * sigmoid(2 * MARGIN)
EVEN = 4 * sigmoid(2 * MARGIN) / sigmoid(2 * MARGIN).sum()
TRADES_OPTIONS = MAIL.variants["trades"]
VALUES = {
    "pgd_at": (MAIL(make(PGDAT)), (SHARP * ADVERSARIAL).mean(), SHARP),
    "trades": (
        MAIL(make(TRADES, **MAIL.inner_options["trades"]), **TRADES_OPTIONS),
        CE_CLEAN + 5 * (FLAT * KL).mean(),
        FLAT,
    ),
    "mart": (MAIL(make(MART)), (SHARP * BCE).mean() + 5 * DIVERGENCE, SHARP),
    "paper": (MAIL(make(PGDAT), normalization="paper", **TRADES_OPTIONS), (EVEN * ADVERSARIAL).mean(), EVEN),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    objective, expected, weights = VALUES[name]
    loss, aux = run(objective, batch=CURVED, context=LATE)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["instance_weight"], weights.mean(), rtol=1e-4)


def test_weights_by_margin():
    # Two-class logits whose probabilities differ by m; all others have none.
    def weights(objective, margin):
        with np.errstate(divide="ignore"):
            z = np.log([[(1 - margin) / 2, (1 + margin) / 2, 0.0]])
        return float(objective.weights(jnp.maximum(jnp.float32(z), -1e4), jnp.array([0]))[0])

    margins = (-1, 0, 0.5, 1)
    np.testing.assert_allclose([weights(MAIL(make(PGDAT)), m) for m in margins], (0, 0.020, 1.5, 2.98), atol=5e-3)
    flat = MAIL(make(TRADES), **TRADES_OPTIONS)
    np.testing.assert_allclose([weights(flat, m) for m in margins], (0.36, 1.5, 2.19, 2.64), atol=5e-3)


def test_weights_of_the_paper_have_mean_1_even_where_all_sigmoids_vanish():
    objective = MAIL(make(PGDAT), normalization="paper", slope=400.0)
    sure = jnp.array([[30.0, 0.0], [30.0, 0.0], [30.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(objective.weights(sure, jnp.zeros(4, jnp.int32)), [0, 0, 0, 4], atol=1e-5)


def test_until_its_start_it_is_the_method_inside():
    for epoch, weighted in ((75, False), (76, True)):
        context = LATE._replace(epoch=jnp.int32(epoch))
        loss = run(MAIL(make(PGDAT)), batch=CURVED, context=context)[0]
        assert np.isclose(loss, ADVERSARIAL.mean(), rtol=1e-4) != weighted
        assert np.isclose(loss, (SHARP * ADVERSARIAL).mean(), rtol=1e-4) == weighted


@pytest.mark.parametrize("normalization", ["code", "paper"])
def test_weights_are_constants_to_the_gradient(normalization):
    objective = MAIL(make(PGDAT), normalization=normalization, start=0.0, **TRADES_OPTIONS)
    weights = jnp.float32(FLAT if normalization == "code" else EVEN)
    ours = gradient(objective, PARAMS, CURVED)[0]["w"]
    # The gradient of sum_i w_i CE_i / B by the logits is w_i (p'_i - y_i) / B.
    x = np.asarray(CURVED.images, np.float64).reshape(4, -1)
    features = (x - x.mean(0)) * np.asarray(PARAMS["scale"])
    expected = features.T @ (np.asarray(weights)[:, None] * (PA - np.eye(3)[Y])) / 4
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


def test_forwards_and_crafting_are_those_inside():
    for method, order in ((PGDAT, "a"), (TRADES, "cac"), (MART, "ca")):
        assert train_forwards(value, MAIL(make(method)), PARAMS, BATCH) == order
    inside, around = (jax.jit(perturb)(o).images for o in (make(TRADES), MAIL(make(TRADES))))
    np.testing.assert_array_equal(inside, around)


def test_inside_awp_the_weights_see_the_perturbed_model():
    objective = AWP(MAIL(make(PGDAT), start=0.0), gamma=0.05)
    state = objective.init(None, None, key=jax.random.key(0))
    moved = jax.jit(objective.perturb_weights)(PARAMS, {"mean": jnp.zeros(2)}, state, CURVED, CONTEXT)
    assert not np.allclose(moved["w"], PARAMS["w"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slope": -1.0}, "slope=-1.0 must be at least 0"),
        ({"start": -0.1}, "start=-0.1 must be a share of the run"),
        ({"normalization": "papper"}, "normalization='papper' is unknown; did you mean 'paper'?"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        MAIL(make(PGDAT), **options)
