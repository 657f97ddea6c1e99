import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.objectives import SCORE
from tests.objectives.numeric import PROBED, UNMOVED, check, loss_of_attack, probe
from tests.objectives.stub import (
    CURVED,
    PARAMS,
    Y,
    gradient,
    make,
    perturb,
    softmax,
    train_forwards,
    value,
)

ONE_HOT = np.eye(3)[Y]


def squared(p, q):
    return ((p - q) ** 2).sum(1)


@pytest.mark.parametrize(("beta", "clip"), [(4.0, 0.0), (3.0, 0.0), (4.0, 0.3)])
def test_loss_and_gradient(beta, clip):
    def loss(clean, adversarial, w):
        p, q = softmax(clean), softmax(adversarial)
        return squared(p, ONE_HOT) + beta * np.maximum(squared(p, q) - clip, 0.0)

    check(make(SCORE, beta=beta, clip=clip), loss)


def test_the_attack_maximises_the_distance_of_predictions():
    found = loss_of_attack(make(SCORE, attack=probe))
    np.testing.assert_allclose(found, squared(softmax(PROBED), softmax(UNMOVED)), rtol=1e-4, atol=1e-6)


def test_crafting_is_a_constant():
    slope = jax.jit(jax.grad(lambda params: jnp.sum(perturb(make(SCORE), params).images)))(PARAMS)
    assert not np.any(slope["w"])


def test_forwards():
    assert train_forwards(value, make(SCORE)) == "ca"
    assert train_forwards(perturb, make(SCORE)) == ""


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    assert np.isfinite(value(make(SCORE), params, CURVED)[0])
    assert np.all(np.isfinite(gradient(make(SCORE), params, CURVED)[0]["w"]))


def test_negative_weights_are_refused():
    with pytest.raises(InputError, match=re.escape("clip=-0.1 must be at least 0")):
        make(SCORE, clip=-0.1)
