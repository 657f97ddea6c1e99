import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import AdversarialBatch, Batch
from piat_jax.objectives import PGDAT, TRADES
from piat_jax.objectives.consistency import Consistency
from piat_jax.objectives.mail import MAIL
from piat_jax.objectives.mart import MART
from piat_jax.objectives.rpat import RPAT
from tests.objectives.stub import (
    ADVERSARIAL,
    BATCH,
    CLEAN,
    CONTEXT,
    CURVED,
    IMAGES,
    LABELS,
    OTHER,
    PARAMS,
    STATE,
    Stub,
    Y,
    gradient,
    logits,
    make,
    perturb,
    softmax,
    train_forwards,
    unit,
    value,
)


class Bent(Stub):
    """The stub with logits that are not linear in the images."""

    def apply(self, params, model_state, images, *, train, key=None):
        z, state = super().apply(params, model_state, images, train=train)
        return bend(z), state


def bend(z):
    return z + z**2 / 4


BENT = functools.partial(make, model=Bent())
run = jax.jit(value)
X, XA = np.asarray(IMAGES, np.float64), np.asarray(OTHER, np.float64)
Z, ZA = bend(logits(X)), bend(logits(XA))
CE = -np.log(softmax(ZA)[np.arange(4), Y]).mean()


def kl(z, other):
    p, q = softmax(z), softmax(other)
    return (p * np.log(p / q)).sum(1)


def js(z, other):
    p, q = softmax(z), softmax(other)
    m = (p + q) / 2
    return ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)) / 2


DISTANCES = {
    "mse": lambda u, v: ((u - v) ** 2).mean(1),
    "kl": kl,
    "js": js,
    "cosine": lambda u, v: 1 - (unit(u) * unit(v)).sum(1),
}


def differences(alpha, scale):
    mid = bend(logits(X + alpha * (XA - X)))
    factor = {"paper": 1.0, "code": alpha * (1 - alpha)}[scale]
    return factor * (mid - Z) / alpha, factor * (ZA - mid) / (1 - alpha)


@pytest.mark.parametrize("scale", ["code", "paper"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_values(distance, scale):
    for alpha in (0.5, 0.2):
        expected = DISTANCES[distance](*differences(alpha, scale)).mean()
        loss, aux = run(RPAT(BENT(PGDAT), weight=0.3, alpha=alpha, scale=scale, distance=distance), batch=CURVED)
        np.testing.assert_allclose(aux.metrics["robust_perception"], expected, rtol=2e-4)
        np.testing.assert_allclose(loss, CE + 0.3 * expected, rtol=2e-4)
        assert expected > 1e-3


def test_the_code_compares_the_mix_of_logits_and_the_paper_is_16_times_that():
    def term(**options):
        return run(RPAT(BENT(PGDAT), **options), batch=CURVED)[1].metrics["robust_perception"]

    # Its rate weighs the clean side: r = 1 - alpha.
    for r in (0.5, 0.2):
        mid = bend(logits(r * X + (1 - r) * XA))
        np.testing.assert_allclose(term(alpha=1 - r), ((mid - r * Z - (1 - r) * ZA) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(16 * term(), term(scale="paper"), rtol=1e-5)
    np.testing.assert_allclose(term(alpha=0.8) / (0.8 * 0.2) ** 2, term(alpha=0.8, scale="paper"), rtol=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_nothing_to_add_for_an_affine_model_or_equal_images(distance):
    objective = RPAT(make(PGDAT), alpha=0.3, scale="paper", distance=distance)
    np.testing.assert_allclose(run(objective, batch=CURVED)[1].metrics["robust_perception"], 0, atol=1e-5)
    same = AdversarialBatch(CLEAN, IMAGES)
    ours, aux = gradient(RPAT(BENT(PGDAT), distance=distance), PARAMS, same)
    np.testing.assert_allclose(aux.metrics["robust_perception"], 0, atol=1e-6)
    assert np.all(np.isfinite(ours["w"]))


def test_gradients_reach_all_three_forwards():
    objective = RPAT(BENT(PGDAT), alpha=0.4)
    ours = gradient(objective, PARAMS, CURVED)[0]["w"]
    direction = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)), jnp.float32)
    high, low = (run(objective, {**PARAMS, "w": PARAMS["w"] + h * direction}, CURVED)[0] for h in (1e-2, -1e-2))
    np.testing.assert_allclose(jnp.sum(ours * direction), (high - low) / 2e-2, rtol=1e-2)


def test_train_forwards_in_order():
    for method, order in ((PGDAT, "amc"), (TRADES, "cacm"), (MART, "cam")):
        assert train_forwards(value, RPAT(make(method)), PARAMS, BATCH) == order
    two = AdversarialBatch(
        Batch(jnp.tile(IMAGES, (2, 1, 1, 1)), jnp.tile(LABELS, 2), jnp.arange(8)), jnp.tile(ADVERSARIAL, (2, 1, 1, 1))
    )
    assert RPAT(Consistency(make(PGDAT))).views == 2
    assert train_forwards(value, RPAT(Consistency(make(PGDAT))), PARAMS, two) == "amc"
    mean = np.asarray(STATE["mean"], np.float64)
    for x in (ADVERSARIAL, 0.7 * IMAGES + 0.3 * ADVERSARIAL, IMAGES):
        mean = 0.9 * mean + 0.1 * np.asarray(x, np.float64).reshape(4, -1).mean(0)
    np.testing.assert_allclose(value(RPAT(make(PGDAT), alpha=0.3))[1].model_state["mean"], mean, rtol=1e-5)


def test_before_its_start_or_without_weight_it_is_the_method_inside():
    late = RPAT(BENT(PGDAT), start=0.5)
    np.testing.assert_allclose(run(late, batch=CURVED)[0], CE, rtol=1e-5)
    np.testing.assert_allclose(run(RPAT(BENT(PGDAT), weight=0.0), batch=CURVED)[0], CE, rtol=1e-5)
    assert run(late, batch=CURVED, context=CONTEXT._replace(epoch=jnp.int32(5)))[0] > CE + 1e-2


def test_instance_weights_leave_the_term_alone():
    term = DISTANCES["mse"](*differences(0.5, "code")).mean()
    plain = run(MAIL(BENT(PGDAT), start=0.0), batch=CURVED)[0]
    for both in (MAIL(RPAT(BENT(PGDAT)), start=0.0), RPAT(MAIL(BENT(PGDAT), start=0.0))):
        np.testing.assert_allclose(run(both, batch=CURVED)[0], plain + term, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0 must be at least 0"),
        ({"alpha": 1.0}, "alpha=1.0 must be in [0.01, 0.99]"),
        ({"scale": "papers"}, "scale='papers' is unknown; did you mean 'paper'?"),
        ({"distance": "l2"}, "distance='l2' is unknown; choose one of cosine, js, kl, mse"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        RPAT(make(PGDAT), **options)


@pytest.mark.parametrize("alpha_from", ["beta-", "beta+"])
def test_a_drawn_share_takes_the_place_of_the_fixed_one(alpha_from):
    drawn = RPAT(BENT(PGDAT), alpha_from=alpha_from)
    shares = []
    for seed in range(8):
        batch = perturb(drawn, context=CONTEXT._replace(key=jax.random.key(seed)))
        share = batch.extra["RPAT"]
        shares.append(share.item())
        images = drawn.inputs(batch)
        np.testing.assert_allclose(images["mid"], IMAGES + share * (batch.images - IMAGES), rtol=1e-6)
        fixed = RPAT(BENT(PGDAT), alpha=min(max(share.item(), 0.01), 0.99))
        given, same = (value(o, batch=batch)[1].metrics for o in (drawn, fixed))
        np.testing.assert_allclose(given["robust_perception"], same["robust_perception"], rtol=1e-5)
    assert len(set(shares)) == 8
    low, high = (0.0099, 0.5) if alpha_from == "beta-" else (0.5, 0.9901)
    assert all(low <= share <= high for share in shares)
    assert 0.0 < sum(shares) / 8 - low < 0.5 if alpha_from == "beta-" else sum(shares) / 8 > 0.55
