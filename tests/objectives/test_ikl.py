import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import Aux, Variables
from piat_jax.objectives import IKL
from piat_jax.objectives.ikl import ClassMeans, half_variance
from tests.objectives.numeric import PROBED, UNMOVED, W, check, cross_entropy, logits, loss_of_attack, probe
from tests.objectives.stub import (
    BATCH,
    CONTEXT,
    CURVED,
    IMAGES,
    PARAMS,
    STATE,
    ZA,
    Y,
    Z,
    gradient,
    make,
    perturb,
    softmax,
    state_of,
    train_forwards,
    value,
)

RNG = np.random.default_rng(2)
MEANS = softmax(RNG.normal(size=(3, 3)))
LEARNED = ClassMeans(jnp.asarray(MEANS, jnp.float32), jnp.zeros((3, 3)))
UNIFORM = np.full((3, 3), 1 / 3)


def expected(means, alpha, beta):
    """With both sums over classes written out."""
    target = softmax(logits(IMAGES, W))

    def loss(clean, adversarial, w):
        soft = -np.sum(target * np.log(softmax(adversarial)), axis=1)
        d = clean - adversarial
        s = means[Y]
        pairs = (d[:, :, None] - d[:, None, :]) ** 2 * s[:, :, None] * s[:, None, :]
        return cross_entropy(clean, Y) + beta * pairs.sum((1, 2)) / 4 + alpha * soft

    return loss


@pytest.mark.parametrize(("alpha", "beta"), [(4.0, 20.0), (5.0, 0.0), (0.0, 12.0)])
def test_loss_and_gradient(alpha, beta):
    objective = make(IKL, alpha=alpha, beta=beta)
    check(objective, expected(UNIFORM, alpha, beta))
    check(objective, expected(MEANS, alpha, beta), state=LEARNED)


def test_with_the_prediction_for_weights_it_has_the_gradients_of_the_divergence():
    """The paper's decoupling: by the clean logits the squared part, by the adversarial ones the soft part."""
    z, adversarial = jnp.asarray(Z, jnp.float32), jnp.asarray(ZA, jnp.float32)
    p = jax.nn.softmax(z)

    def divergence(z):
        log_p = jax.nn.log_softmax(z)
        return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(adversarial)))

    ours = jax.grad(lambda z: jnp.sum(half_variance(z, adversarial, p)))(z)
    np.testing.assert_allclose(ours, jax.grad(divergence)(z), rtol=1e-3, atol=1e-5)


def test_the_attack_maximises_the_soft_cross_entropy():
    found = loss_of_attack(make(IKL, attack=probe))
    np.testing.assert_allclose(found, -(softmax(UNMOVED) * np.log(softmax(PROBED))).sum(1), rtol=1e-4)


def after(objective, state, epoch):
    """An epoch of one step, by its logits."""
    clean = jnp.asarray(Z, jnp.float32) * (1 + epoch)
    aux = Aux(STATE, {}, {"clean": clean, "adversarial": jnp.asarray(ZA, jnp.float32)})
    state = objective.after_step(Variables(PARAMS, STATE), state, BATCH, aux, CONTEXT)
    return objective.after_epoch(state, CONTEXT._replace(epoch=jnp.int32(epoch)))


def test_means_over_two_epochs():
    objective = make(IKL, temperature=2.0)
    first = jax.jit(after, static_argnums=2)(objective, state_of(objective), 0)
    p = softmax(Z / 2)
    np.testing.assert_allclose(first.mean, [(p[0] + p[3]) / 2, p[1], p[2]], rtol=1e-5)
    second = after(objective, first, 1)
    q = softmax(Z)
    np.testing.assert_allclose(second.mean, [(q[0] + q[3]) / 2, q[1], q[2]], rtol=1e-5)
    np.testing.assert_array_equal(second.total, np.zeros((3, 3)))


def test_a_class_that_did_not_occur_keeps_its_mean():
    kept = make(IKL).after_epoch(ClassMeans(LEARNED.mean, jnp.diag(jnp.array([2.0, 0.0, 4.0]))), CONTEXT)
    np.testing.assert_allclose(kept.mean, [[1, 0, 0], MEANS[1], [0, 0, 1]], rtol=1e-6)


def test_forwards():
    assert train_forwards(value, make(IKL)) == "ac"
    assert train_forwards(perturb, make(IKL)) == ""


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    assert np.isfinite(value(make(IKL), params, CURVED)[0])
    assert np.all(np.isfinite(gradient(make(IKL), params, CURVED)[0]["w"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be in (0, inf]"),
        ({"alpha": -1.0}, "alpha=-1.0 must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make(IKL, **options)
