import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import fgsm
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.types import Variables
from piat_jax.objectives import PGDAT, TRADES
from piat_jax.objectives.awp import AWP
from piat_jax.objectives.fat import FAT
from tests.objectives.stub import (
    ATTACK,
    CONTEXT,
    IMAGES,
    LABELS,
    PARAMS,
    STATE,
    make,
    perturb,
    train_forwards,
    value,
)

# Not `jit(perturb)`: its cache would be shared with other tests, which look at what is traced.
run = jax.jit(lambda *arguments, **options: perturb(*arguments, **options))


def at(epoch, epochs):
    return CONTEXT._replace(epoch=jnp.int32(epoch), epochs=jnp.int32(epochs))


def patience_at(objective, epoch, epochs):
    seen = {}

    def spy(logits_fn, images, labels, *, key, indices=None, patience=None, noise=None):
        seen.update(patience=patience, noise=noise)
        return images

    jax.block_until_ready(perturb(FAT(make(PGDAT, attack=spy), **objective), context=at(epoch, epochs)).images)
    return int(seen["patience"])


@pytest.mark.parametrize(
    ("options", "epochs", "last"),
    [
        ({}, 120, (50, 90)),
        (FAT.variants["trades"], 85, (30, 50, 70)),
        (FAT.variants["mart"], 90, (20, 40, 60, 80)),
    ],
    ids=["fat", "trades", "mart"],
)
def test_patience_goes_up_after_the_papers_epochs(options, epochs, last):
    for tau, epoch in enumerate(last):  # 1-based, the last one with this tau
        assert patience_at(options, epoch - 1, epochs) == tau
        assert patience_at(options, epoch, epochs) == tau + 1


@pytest.mark.parametrize("method", [PGDAT, TRADES])
def test_with_all_the_patience_and_no_noise_it_is_the_method_inside(method):
    inner = make(method)
    friendly = FAT(inner, shares=(0.0,) * 3, noise=0.0)  # the attack takes 3 steps
    np.testing.assert_allclose(run(friendly).images, run(inner).images, atol=1e-6)
    np.testing.assert_allclose(value(friendly)[0], value(inner)[0], rtol=1e-6)


def test_what_is_misclassified_at_first_stays_where_it_starts():
    logits = make(PGDAT).logits_fn(Variables(PARAMS, STATE))(IMAGES)
    wrong = ~np.asarray(losses.correct(logits, LABELS))
    assert 0 < wrong.sum() < 4
    images = run(FAT(make(PGDAT, attack=bind(ATTACK, start="none")))).images
    np.testing.assert_array_equal(np.abs(images - IMAGES).max((1, 2, 3)) == 0, wrong)


def test_noise_moves_the_images():
    attack = bind(ATTACK, start="none", step_size=0.0)
    moved = run(FAT(make(PGDAT, attack=attack), shares=(0.0,) * 3, noise=0.02)).images - IMAGES
    assert 0.005 < np.std(moved) < 0.1
    np.testing.assert_array_equal(run(FAT(make(PGDAT, attack=attack), noise=0.0)).images, IMAGES)


def test_it_composes_and_forwards_as_inside():
    assert train_forwards(value, FAT(AWP(make(TRADES, clean_forwards=1), start=1.0))) == "ca"
    assert train_forwards(perturb, FAT(make(TRADES))) == ""
    inside, outside = AWP(FAT(make(PGDAT))), FAT(AWP(make(PGDAT)))
    np.testing.assert_array_equal(run(inside).images, run(outside).images)


def test_tau_does_not_recompile():
    traces = []

    @jax.jit
    def step(objective, context):
        traces.append(context)
        return perturb(objective, context=context).images

    for epoch in (0, 5, 9):
        step(FAT(make(PGDAT), shares=(0.1 * epoch, 0.9)), at(epoch, 10))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": (0.5, 50.0)}, "shares=50.0 must be a share of the run"),
        ({"noise": -0.1}, "noise=-0.1 must be at least 0"),
        (
            {"inner": make(PGDAT, attack=bind(fgsm))},
            "FAT sets the attack's 'patience', which this attack does not take",
        ),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = dict(options)
    with pytest.raises(InputError, match=re.escape(message)):
        FAT(options.pop("inner", make(PGDAT)), **options)
