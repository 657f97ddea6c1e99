import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.attacks import fgsm
from piat_jax.core.checks import InputError
from piat_jax.core.types import Aux, Variables
from piat_jax.objectives import DAFA, PGDAT, TRADES
from piat_jax.objectives.base import WrapperState
from piat_jax.objectives.dafa import ClassWeights, class_weights
from tests.objectives.numeric import check, cross_entropy, divergence
from tests.objectives.stub import (
    BATCH,
    CONTEXT,
    IMAGES,
    PA,
    PARAMS,
    STATE,
    ZA,
    Y,
    make,
    perturb,
    softmax,
    state_of,
    train_forwards,
    value,
)

WEIGHTS = np.array([0.5, 1.25, 2.0])
CALIBRATED = WrapperState(
    ClassWeights(jnp.asarray(WEIGHTS, jnp.float32), jnp.zeros((3, 3)), jnp.zeros(3, jnp.int32)), ()
)


def by_loops(similarity, lam):
    """The code's two loops."""
    weights = np.ones(len(similarity))
    for i in range(len(similarity)):
        for j in range(len(similarity)):
            if i != j:
                sign = 1 if similarity[i, i] < similarity[j, j] else -1
                weights[i] += sign * lam * similarity[i, j] * similarity[j, j]
    return np.maximum(weights, 0)


@pytest.mark.parametrize("lam", [0.0, 1.0, 1.5, 9.0])
def test_weights_of_the_classes(lam):
    rng = np.random.default_rng(0)
    for _ in range(5):
        similarity = softmax(2 * rng.normal(size=(5, 5)))
        np.testing.assert_allclose(class_weights(jnp.asarray(similarity), lam), by_loops(similarity, lam), rtol=1e-5)
    assert class_weights(jnp.full((2, 2), 0.5), 1.0).tolist() == [0.75, 0.75]


def test_loss_and_gradient():
    weights = WEIGHTS[Y]
    check(DAFA(make(PGDAT)), lambda clean, adversarial, w: weights * cross_entropy(adversarial, Y), state=CALIBRATED)
    check(
        DAFA(make(TRADES)),
        lambda clean, adversarial, w: (
            weights * cross_entropy(clean, Y) + 6 * divergence(softmax(clean), softmax(adversarial))
        ),
        state=CALIBRATED,
    )
    check(DAFA(make(PGDAT)), lambda clean, adversarial, w: cross_entropy(adversarial, Y))


def radii(logits_fn, images, labels, *, key, indices=None, eps=0.1, step_size=0.05, loss=None):
    """An attack that shows its radius and step size in the two pixels."""
    return images + jnp.stack([eps, step_size], axis=-1).reshape(-1, 1, 2, 1)


@pytest.mark.parametrize(
    ("method", "set_outside"), [(PGDAT, {}), (TRADES, {}), (PGDAT, {"eps": 0.2, "step_size": 0.3})]
)
def test_each_class_has_its_own_radius_and_steps(method, set_outside):
    objective = DAFA(make(method, attack=radii), eps=0.08)
    context = CONTEXT.with_attack(**set_outside)
    crafted = jax.jit(objective.perturb)(Variables(PARAMS, STATE), CALIBRATED, BATCH.clean, context)
    shown = np.asarray(crafted.images - IMAGES).reshape(4, 2)
    eps, step = set_outside.get("eps", 0.08), set_outside.get("step_size", 0.05)
    np.testing.assert_allclose(shown, WEIGHTS[Y][:, None] * [eps, step], rtol=1e-4)


def after(objective, state, epoch, epochs=4):
    """An epoch of one step."""
    context = CONTEXT._replace(epoch=jnp.int32(epoch), epochs=jnp.int32(epochs))
    logits = jnp.asarray(ZA, jnp.float32)
    aux = Aux(STATE, {}, {"clean": 0 * logits, "adversarial": logits * (1 + epoch)})
    return objective.after_epoch(objective.after_step(Variables(PARAMS, STATE), state, BATCH, aux, context), context)


def test_weights_are_those_of_the_last_epoch_before_the_start_and_stay():
    objective = DAFA(make(PGDAT), start=0.5)
    state, seen = state_of(objective), []
    for epoch in range(4):
        state = jax.jit(after, static_argnums=2)(objective, state, epoch)
        seen.append(np.asarray(state.own.weights))
        assert not np.any(state.own.total)
        assert not np.any(state.own.counts)
    p = softmax(2 * ZA)
    expected = by_loops(np.stack([(p[0] + p[3]) / 2, p[1], p[2]]), 1.0)
    np.testing.assert_array_equal(seen[0], np.ones(3))
    for weights in seen[1:]:
        np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_from_the_beginning_it_waits_for_one_epoch():
    first = after(DAFA(make(PGDAT), start=0.0), state_of(DAFA(make(PGDAT))), 0)
    similarity = np.stack([(PA[0] + PA[3]) / 2, PA[1], PA[2]])
    np.testing.assert_allclose(first.own.weights, by_loops(similarity, 1.0), rtol=1e-4)


def test_forwards_are_those_inside():
    for method, order in ((PGDAT, "a"), (TRADES, "cac")):
        assert train_forwards(value, DAFA(make(method))) == order
    assert train_forwards(perturb, DAFA(make(PGDAT))) == ""


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match=re.escape("lam=-1.0 must be at least 0")):
        DAFA(make(PGDAT), lam=-1.0)
    with pytest.raises(InputError, match="DAFA sets the attack's 'step_size', which this attack does not take"):
        DAFA(make(PGDAT, attack=fgsm))
