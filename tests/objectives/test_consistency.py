import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import AdversarialBatch, Batch
from piat_jax.objectives import AWP, PGDAT, TRADES
from piat_jax.objectives.consistency import Consistency
from piat_jax.objectives.mart import MART
from tests.objectives.stub import (
    ADVERSARIAL,
    CE,
    CE_CLEAN,
    CLEAN,
    CURVED,
    IMAGES,
    KL,
    LABELS,
    PA,
    PARAMS,
    ZA,
    Y,
    gradient,
    make,
    perturb,
    softmax,
    train_forwards,
    value,
)

# Examples 0, 1 and their second views 2, 3.
BATCH = CURVED
run = jax.jit(value)


def js(z, other, temperature):
    p, q = softmax(z / temperature), softmax(other / temperature)
    m = (p + q) / 2
    return ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)) / 2


JS = js(ZA[:2], ZA[2:], 0.5).mean()
OTHERS = np.where(np.arange(3)[None] == Y[:, None], 0, PA).max(1)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Consistency(make(PGDAT)), CE + JS),
        (Consistency(make(TRADES), weight=2.0), CE_CLEAN + 6 * KL + 2 * JS),
        (Consistency(make(PGDAT), temperature=3.0), CE + js(ZA[:2], ZA[2:], 3.0).mean()),
    ],
    ids=["pgd_at", "trades", "temperature"],
)
def test_values(objective, expected):
    np.testing.assert_allclose(run(objective, batch=BATCH)[0], expected, rtol=1e-4)


def test_on_mart_it_adds_the_divergence():
    (plain, _), (loss, aux) = run(make(MART), batch=BATCH), run(Consistency(make(MART)), batch=BATCH)
    np.testing.assert_allclose(loss - plain, JS, rtol=1e-3)
    np.testing.assert_allclose(aux.metrics["consistency"], JS, rtol=1e-4)


def test_without_weight_or_with_equal_views_it_is_the_method_inside():
    np.testing.assert_allclose(run(Consistency(make(PGDAT), weight=0.0), batch=BATCH)[0], CE, rtol=1e-4)
    images = jnp.concatenate([CURVED.images[:2]] * 2)
    twice = AdversarialBatch(CLEAN, images)
    np.testing.assert_allclose(*(run(o, batch=twice)[0] for o in (Consistency(make(PGDAT)), make(PGDAT))), rtol=1e-6)


def test_gradients_reach_both_views():
    objective = Consistency(make(PGDAT), temperature=5.0, weight=20.0)
    ours = gradient(objective, PARAMS, BATCH)[0]["w"]
    direction = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)), jnp.float32)
    high, low = (run(objective, {**PARAMS, "w": PARAMS["w"] + h * direction}, BATCH)[0] for h in (1e-2, -1e-2))
    np.testing.assert_allclose(jnp.sum(ours * direction), (high - low) / 2e-2, rtol=2e-2)


def test_two_views_forwarded_together():
    two = AdversarialBatch(
        Batch(jnp.tile(IMAGES, (2, 1, 1, 1)), jnp.tile(LABELS, 2), jnp.arange(8)), jnp.tile(ADVERSARIAL, (2, 1, 1, 1))
    )
    assert Consistency(make(PGDAT)).views == AWP(Consistency(make(PGDAT))).views == 2
    assert train_forwards(value, Consistency(make(PGDAT)), PARAMS, two) == "a"
    once = Consistency.inner_options["trades"]
    assert train_forwards(value, Consistency(make(TRADES, **once)), PARAMS, two) == "ca"
    assert train_forwards(value, Consistency(make(MART)), PARAMS, two) == "ca"
    # Each view is attacked on its own: views of one image with other indices have other starts.
    images = jax.jit(perturb)(Consistency(make(PGDAT)), batch=two.clean).images
    assert images.shape[0] == 8
    assert np.any(images[:4] != images[4:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0 must be at least 0"),
        ({"temperature": 0.0}, "temperature=0.0 must be in (0, inf]"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Consistency(make(PGDAT), **options)


def test_an_odd_batch_has_no_two_views():
    odd = AdversarialBatch(Batch(IMAGES[:3], LABELS[:3], jnp.arange(3)), ADVERSARIAL[:3])
    with pytest.raises(InputError, match="a batch of 3 does not hold two views"):
        value(Consistency(make(PGDAT)), PARAMS, odd)
