import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import mi_fgsm, pgd
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.types import AdversarialBatch, Variables
from piat_jax.objectives import PGDAT, TRADES
from piat_jax.objectives.fat import FAT
from piat_jax.objectives.gairat import GAIRAT, instance_weights
from tests.objectives.stub import (
    ATTACK,
    CE_CLEAN,
    CONTEXT,
    CURVED,
    IMAGES,
    KL,
    LABELS,
    PA,
    PARAMS,
    ROWS,
    STATE,
    Y,
    gradient,
    make,
    perturb,
    train_forwards,
    value,
)

LATE = CONTEXT._replace(epoch=jnp.int32(5))  # of 10
WEIGHTS = np.array([0.1, 2.0, 1.5, 0.4])
WEIGHTED = CURVED._replace(extra={"GAIRAT": jnp.asarray(WEIGHTS, jnp.float32)})
# Not `jit(perturb)`: its cache would be shared with other tests, which look at what is traced.
run = jax.jit(lambda *arguments, **options: perturb(*arguments, **options))


@pytest.mark.parametrize("steps", [10, 7, 2])
@pytest.mark.parametrize("lam", [-1.0, 0.0, 2.0])
def test_weights(steps, lam):
    kappa = np.arange(steps + 1, dtype=np.float64)
    half = steps // 2
    expected = 0.5 * (np.tanh(lam + 5 * (half - kappa) / half) + 1)
    ours = instance_weights(jnp.arange(steps + 1), steps, lam)
    np.testing.assert_allclose(ours, expected / expected.mean(), rtol=1e-4)
    # Where every example is as safe as can be, the weights are equal, not 0 / 0.
    np.testing.assert_allclose(instance_weights(jnp.full(4, steps), steps, lam), 1.0, rtol=1e-5)


def test_the_batch_carries_the_weights_of_its_counts():
    attack = bind(ATTACK, start="none", steps=4, step_size=0.01)
    logits_fn = make(PGDAT).logits_fn(Variables(PARAMS, STATE))
    points = [IMAGES] + [pgd(logits_fn, IMAGES, LABELS, key=CONTEXT.key, **ATTACK_NUMBERS, steps=k) for k in (1, 2, 3)]
    kappa = sum(np.asarray(losses.correct(logits_fn(x), LABELS), int) for x in points)
    assert len(set(kappa)) > 1
    batch = run(GAIRAT(make(PGDAT, attack=attack)), context=LATE)
    np.testing.assert_array_equal(batch.iterates.correct, kappa)
    np.testing.assert_allclose(batch.extra["GAIRAT"], instance_weights(kappa, 4, -1.0), rtol=1e-5)
    np.testing.assert_array_equal(batch.images, run(make(PGDAT, attack=attack)).images)
    # An attack that stops early counts as far as it went.
    np.testing.assert_array_equal(
        run(FAT(GAIRAT(make(PGDAT, attack=attack)), noise=0.0), context=LATE).iterates.correct, kappa
    )


ATTACK_NUMBERS = {"eps": 0.1, "step_size": 0.01, "start": "none"}


def test_until_its_start_all_weights_are_one():
    for epoch, equal in ((4, True), (5, False)):
        weights = run(GAIRAT(make(PGDAT)), context=CONTEXT._replace(epoch=jnp.int32(epoch))).extra["GAIRAT"]
        assert np.all(weights == 1.0) == equal


def test_only_the_adversarial_part_is_weighted():
    each = -np.log(PA[ROWS, Y])
    np.testing.assert_allclose(value(GAIRAT(make(PGDAT)), batch=WEIGHTED)[0], (WEIGHTS * each).mean(), rtol=1e-4)
    trades = make(TRADES)
    ones = WEIGHTED._replace(extra={"GAIRAT": jnp.ones(4)})
    np.testing.assert_allclose(value(GAIRAT(trades), batch=ones)[0], CE_CLEAN + 6 * KL, rtol=1e-4)
    doubled = WEIGHTED._replace(extra={"GAIRAT": jnp.full(4, 2.0)})
    np.testing.assert_allclose(value(GAIRAT(trades), batch=doubled)[0], CE_CLEAN + 12 * KL, rtol=1e-4)


def test_gradient_is_of_the_weighted_loss():
    ours, _ = gradient(GAIRAT(make(PGDAT)), PARAMS, WEIGHTED)

    def by_hand(params):
        logits, _ = make(PGDAT).model.apply(params, STATE, CURVED.images, train=True)
        return jnp.mean(jnp.asarray(WEIGHTS, jnp.float32) * losses.cross_entropy(logits, LABELS))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, jax.grad(by_hand)(PARAMS))


def test_forwards_are_those_inside():
    assert train_forwards(value, GAIRAT(make(TRADES)), PARAMS, WEIGHTED) == "cac"
    assert train_forwards(perturb, GAIRAT(make(PGDAT))) == ""


def test_a_method_that_does_not_craft_has_no_iterates():
    class Flipped(PGDAT):
        def perturb(self, variables, objective_state, batch, context):
            return AdversarialBatch(batch, batch.images[:, ::-1])

    with pytest.raises(
        InputError, match=r"GAIRAT needs counts of the attack's iterates; let Flipped\.perturb call self"
    ):
        perturb(GAIRAT(make(Flipped)))


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (make(PGDAT, attack=bind(ATTACK, steps=1)), "attack.steps=1 must be at least 2"),
        (make(PGDAT, attack=bind(mi_fgsm, steps=5)), "attack mi_fgsm does not count iterates; give bind(pgd, ...)"),
        (
            make(PGDAT, attack=bind(ATTACK, restarts=2)),
            "GAIRAT follows one run to its end: attack.restarts=2",
        ),
        (
            make(PGDAT, attack=bind(lambda *a, key, indices: a, indices=None)),
            "GAIRAT sets the attack's 'steps', which this attack does not take",
        ),
    ],
)
def test_bad_attacks_are_refused(inner, message):
    with pytest.raises(InputError, match=re.escape(message)):
        GAIRAT(inner)
