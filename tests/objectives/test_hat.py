import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import AdversarialBatch, Variables
from piat_jax.objectives import HAT, PGDAT, TRADES
from tests.objectives.numeric import check, cross_entropy, divergence, logits
from tests.objectives.stub import (
    CLEAN,
    IMAGES,
    LOG,
    OTHER,
    PARAMS,
    STATE,
    Y,
    gradient,
    make,
    perturb,
    softmax,
    state_of,
    train_forwards,
    value,
)

STANDARD = Variables({"w": PARAMS["w"][:, ::-1], "scale": jnp.array([0.6, 1.2])}, {"mean": jnp.array([0.75, 0.8])})
HELPERS = np.argmax(logits(OTHER, np.asarray(STANDARD.params["w"], np.float64), train=False, mean=[0.75, 0.8],
                           scale=[0.6, 1.2]), axis=-1)  # fmt: skip


def hat(method=TRADES, **options):
    return HAT(make(method, **HAT.inner_options.get({TRADES: "trades"}.get(method), {})), standard=STANDARD, **options)


BATCH = hat().hand(AdversarialBatch(CLEAN, OTHER), jnp.asarray(HELPERS))


@pytest.mark.parametrize(("weight", "reach"), [(0.5, 2.0), (0.3, 3.5), (0.0, 2.0)])
def test_loss_and_gradient_around_trades(weight, reach):
    def loss(clean, adversarial, w):
        helper = logits(np.asarray(IMAGES) + reach * np.asarray(OTHER - IMAGES), w)
        kl = divergence(softmax(clean), softmax(adversarial))
        return cross_entropy(clean, Y) + 2.5 * kl + weight * cross_entropy(helper, HELPERS)

    check(hat(weight=weight, reach=reach), loss, batch=BATCH)


def test_around_pgd_at():
    def loss(clean, adversarial, w):
        helper = logits(2 * np.asarray(OTHER) - np.asarray(IMAGES), w)
        return cross_entropy(adversarial, Y) + 0.5 * cross_entropy(helper, HELPERS)

    check(hat(PGDAT), loss, batch=BATCH)


def test_helpers_are_labelled_by_the_standard_network_on_the_adversarial_images():
    images = jax.jit(perturb)(hat()).images
    np.testing.assert_array_equal(images, jax.jit(perturb)(hat().inner).images)
    between = jnp.mean((images + IMAGES) / 2, axis=0).reshape(-1)  # so that the two differ in class
    crafted = jax.jit(perturb)(HAT(make(TRADES), standard=STANDARD._replace(model_state={"mean": between})))

    def classes(images):
        w = np.asarray(STANDARD.params["w"], np.float64)
        return np.argmax(logits(images, w, train=False, mean=np.asarray(between), scale=[0.6, 1.2]), axis=-1)

    assert np.any(classes(images) != classes(IMAGES))
    np.testing.assert_array_equal(HAT(make(TRADES), standard=STANDARD).handed(crafted), classes(images))


def test_forwards_in_order():
    assert train_forwards(lambda: value(hat(), batch=BATCH)) == "caa"
    assert train_forwards(lambda: value(hat(PGDAT), batch=BATCH)) == "aa"
    LOG.clear()
    inside = HAT(make(TRADES, clean_forwards=2), standard=STANDARD)
    assert inside.forwards == ("clean", "adversarial", "clean", "helper")
    assert train_forwards(perturb, hat()) == ""


def test_the_standard_network_is_not_differentiated():
    slope = jax.jit(jax.grad(lambda objective: value(objective, batch=perturb(objective))[0], allow_int=True))(hat())
    for leaf in jax.tree.leaves(slope.standard):
        assert not np.any(leaf)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    assert np.isfinite(value(hat(), params, BATCH)[0])
    assert np.all(np.isfinite(gradient(hat(), params, BATCH)[0]["w"]))


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match=re.escape("reach=-1.0 must be at least 0")):
        hat(reach=-1.0)
    other = Variables({**PARAMS, "w": jnp.zeros((2, 5))}, STATE)
    with pytest.raises(InputError, match=re.escape("standard/params/w has shape (2, 5) in the teacher and has shape")):
        state_of(HAT(make(TRADES), standard=other))
