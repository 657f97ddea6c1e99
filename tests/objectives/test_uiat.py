import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import bind, pgd
from piat_jax.core.checks import InputError
from piat_jax.core.types import AdversarialBatch
from piat_jax.objectives import FAT, GAIRAT, PGDAT, TE, TRADES, UIAT
from tests.objectives.numeric import check, cross_entropy, divergence, logits
from tests.objectives.stub import (
    CLEAN,
    IMAGES,
    OTHER,
    PARAMS,
    Y,
    gradient,
    make,
    perturb,
    softmax,
    train_forwards,
    value,
)

INVERSE = IMAGES + 0.05 * jnp.asarray(np.random.default_rng(4).normal(size=IMAGES.shape), jnp.float32)
BATCH = UIAT(make(PGDAT)).hand(AdversarialBatch(CLEAN, OTHER), INVERSE)


@pytest.mark.parametrize("weight", [3.5, 1.0, 0.0])
def test_loss_and_gradient(weight):
    def loss(clean, adversarial, w):
        kl = divergence(softmax(adversarial), softmax(logits(INVERSE, w)))
        return cross_entropy(adversarial, Y) + weight * kl

    check(UIAT(make(PGDAT), weight=weight), loss, batch=BATCH)


def shown(logits_fn, images, labels, *, key, indices=None, loss=losses.cross_entropy, eps=0.1, patience=None):
    """An attack that adds to each image what its loss is a little aside."""
    return images + 0.01 * loss(logits_fn(images + 0.05), labels).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("around", [lambda o: o, lambda o: TE(o, examples=4, start=0.0)], ids=["alone", "in TE"])
def test_the_inverse_attack_lowers_the_loss_and_keeps_off_the_adversarial_prediction(around):
    crafted = jax.jit(perturb)(around(UIAT(make(PGDAT, attack=shown))))
    adversarial, inverse = (
        np.asarray(images - IMAGES)[:, 0, 0, 0] / 0.01 for images in (crafted.images, crafted.extra["UIAT"])
    )
    probed = logits(IMAGES + 0.05, train=False)
    assert np.all(adversarial >= cross_entropy(probed, Y) - 1e-4)
    p, clean, attacked = (softmax(logits(x, train=False)) for x in (IMAGES + 0.05, IMAGES, crafted.images))
    expected = -(cross_entropy(probed, Y) + divergence(clean, p) - divergence(attacked, p))
    np.testing.assert_allclose(inverse, expected, rtol=2e-3, atol=2e-3)


def test_it_starts_elsewhere_and_stays_in_the_ball():
    crafted = jax.jit(perturb)(UIAT(make(PGDAT)))
    inside = jax.jit(perturb)(make(PGDAT))
    np.testing.assert_array_equal(crafted.images, inside.images)
    inverse = crafted.extra["UIAT"]
    assert np.all(np.abs(inverse - IMAGES) <= 0.1 + 1e-6)
    before, after = (cross_entropy(logits(x, train=False), Y) for x in (inside.images, inverse))
    assert np.all(after <= before + 1e-6)
    still = jax.jit(perturb)(UIAT(make(PGDAT, attack=bind(pgd, eps=0.1, steps=1, step_size=0.0))))
    assert np.all(np.any(still.images != still.extra["UIAT"], axis=(1, 2, 3)))
    slope = jax.jit(jax.grad(lambda params: jnp.sum(perturb(UIAT(make(PGDAT)), params).extra["UIAT"])))(PARAMS)
    assert not np.any(slope["w"])


def test_what_wrappers_do_to_the_attack_inside_is_not_done_to_the_inverse_one():
    alone = jax.jit(perturb)(UIAT(make(PGDAT)))
    counted = jax.jit(perturb)(GAIRAT(UIAT(make(PGDAT))))
    np.testing.assert_array_equal(counted.extra["UIAT"], alone.extra["UIAT"])
    assert np.all(counted.iterates.total == 3)
    # An early stop would end the inverse attack at its start, which is misclassified here.
    stopped = jax.jit(perturb)(FAT(UIAT(make(PGDAT)), noise=0.0))
    losses_of = [cross_entropy(logits(x, train=False), Y) for x in (stopped.images, stopped.extra["UIAT"])]
    assert np.all(losses_of[1] < losses_of[0])


def test_forwards_in_order():
    assert train_forwards(value, UIAT(make(PGDAT)), PARAMS, BATCH) == "ca"
    assert UIAT(make(PGDAT)).forwards == ("inverse", "adversarial")
    assert UIAT(make(TRADES)).forwards == ("inverse", "clean", "adversarial", "clean")
    assert train_forwards(perturb, UIAT(make(PGDAT))) == ""


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    assert np.isfinite(value(UIAT(make(PGDAT)), params, BATCH)[0])
    assert np.all(np.isfinite(gradient(UIAT(make(PGDAT)), params, BATCH)[0]["w"]))


def no_loss(logits_fn, images, labels, *, key, indices=None, eps=0.1):
    return images


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match=re.escape("weight=-1.0 must be at least 0")):
        UIAT(make(PGDAT), weight=-1.0)
    with pytest.raises(InputError, match="UIAT sets the attack's 'loss', which this attack does not take"):
        UIAT(make(PGDAT, attack=no_loss))
