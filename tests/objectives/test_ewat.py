import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.objectives import EWAT, PGDAT, TRADES
from tests.objectives.numeric import check, cross_entropy, divergence
from tests.objectives.stub import CURVED, PA, PARAMS, Y, gradient, make, perturb, softmax, train_forwards, value

ENTROPY = -(PA * np.log(PA)).sum(1)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_loss_and_gradient_with_constant_weights(offset):
    weights = offset + ENTROPY
    check(EWAT(make(PGDAT), offset=offset), lambda clean, adversarial, w: weights * cross_entropy(adversarial, Y))
    check(
        EWAT(make(TRADES), offset=offset),
        lambda clean, adversarial, w: (
            cross_entropy(clean, Y) + 6 * weights * divergence(softmax(clean), softmax(adversarial))
        ),
    )


def test_the_mean_weight_is_logged():
    metrics = value(EWAT(make(PGDAT)), batch=CURVED)[1].metrics
    np.testing.assert_allclose(metrics["instance_weight"], ENTROPY.mean(), rtol=1e-5)


def test_forwards_and_crafting_are_those_inside():
    for method, order in ((PGDAT, "a"), (TRADES, "cac")):
        assert train_forwards(value, EWAT(make(method))) == order
    inside, around = (jax.jit(perturb)(o).images for o in (make(TRADES), EWAT(make(TRADES))))
    np.testing.assert_array_equal(inside, around)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    loss, _ = value(EWAT(make(PGDAT)), params, CURVED)
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient(EWAT(make(PGDAT)), params, CURVED)[0]["w"]))


def test_a_negative_offset_is_refused():
    with pytest.raises(InputError, match=re.escape("offset=-1.0 must be at least 0")):
        EWAT(make(PGDAT), offset=-1.0)
