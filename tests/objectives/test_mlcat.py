import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import AdversarialBatch
from piat_jax.objectives import AWP, MLCAT, PGDAT, TRADES
from piat_jax.objectives.mlcat import moved
from piat_jax.objectives.parts import cut
from tests.objectives.numeric import W, check, cross_entropy, divergence, logits, slope
from tests.objectives.stub import (
    CONTEXT,
    CURVED,
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

LOSSES = cross_entropy(logits(OTHER), Y)
MIDDLE = float(np.mean(np.sort(LOSSES)[1:3]))  # two of the four are smaller
LATE = CONTEXT._replace(epoch=jnp.int32(5))


def perturbed(objective, params=PARAMS, batch=CURVED, context=CONTEXT):
    state = state_of(objective)
    return jax.jit(objective.perturb_weights)(params, STATE, state, batch, context)


def ascended(minimum, gamma, steps):
    """`w + v` in float64; the stub has one kernel."""

    def small(w):
        losses = cross_entropy(logits(OTHER, w), Y)
        return np.mean(np.where(losses < minimum, losses, 0.0))

    v, total = np.zeros_like(W), np.zeros_like(W)
    for _ in range(steps):
        total += slope(small, W + v)
        v = gamma * np.linalg.norm(W) * total / np.linalg.norm(total)
    return W + v


@pytest.mark.parametrize("steps", [1, 4])
def test_weights_are_moved_along_the_summed_gradients_of_small_losses(steps):
    moved_to = perturbed(MLCAT(make(PGDAT), minimum=MIDDLE, gamma=0.5, steps=steps))
    np.testing.assert_allclose(moved_to["w"], ascended(MIDDLE, 0.5, steps), rtol=1e-3)
    np.testing.assert_array_equal(moved_to["scale"], PARAMS["scale"])


def test_one_norm_is_of_all_kernels_together():
    params = {"a": jnp.array([[3.0, 0.0]]), "b": jnp.array([[4.0, 0.0]]), "bias": jnp.array([9.0])}
    direction = {"a": jnp.array([[0.0, 6.0]]), "b": jnp.array([[0.0, 8.0]]), "bias": jnp.array([7.0])}
    found = moved(params, direction, 0.1)
    np.testing.assert_allclose(found["a"], [[3.0, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [[4.0, 0.4]], rtol=1e-6)
    assert found["bias"] == 9.0


def test_where_no_loss_is_small_or_it_has_not_begun_the_weights_stay():
    for objective in (MLCAT(make(PGDAT), minimum=0.0), MLCAT(make(PGDAT), start=0.5), MLCAT(make(PGDAT), variant="ls")):
        jax.tree.map(np.testing.assert_array_equal, perturbed(objective), PARAMS)
    assert not np.array_equal(perturbed(MLCAT(make(PGDAT), start=0.5), context=LATE)["w"], PARAMS["w"])


def test_losses_of_the_variant_wp_are_those_inside():
    check(MLCAT(make(PGDAT)), lambda clean, adversarial, w: cross_entropy(adversarial, Y))


def test_scaled_losses_have_no_gradient_below_the_minimum():
    objective = MLCAT(make(PGDAT), variant="ls", minimum=MIDDLE)
    check(objective, lambda clean, adversarial, w: np.maximum(cross_entropy(adversarial, Y), MIDDLE))
    np.testing.assert_allclose(value(objective, batch=CURVED)[1].metrics["small_loss"], 0.5)


def test_a_constant_factor_enlarges_the_gradients_below_the_minimum():
    objective = MLCAT(make(PGDAT), variant="ls", minimum=MIDDLE, scale_gradient=False)
    factor = np.maximum(MIDDLE / LOSSES, 1.0)
    check(objective, lambda clean, adversarial, w: factor * cross_entropy(adversarial, Y))


def test_scaling_around_trades_is_of_its_divergence_and_begins_at_its_start():
    objective = MLCAT(make(TRADES), variant="ls", minimum=30.0, start=0.5)

    def loss(minimum):
        def of(clean, adversarial, w):
            kl = 6 * divergence(softmax(clean), softmax(adversarial))
            return cross_entropy(clean, Y) + np.maximum(kl, minimum)

        return of

    check(objective, loss(0.0))
    check(objective, loss(30.0), context=LATE)


def test_a_batch_in_parts_moves_the_weights_as_far():
    # In parts of one kind BatchNorm sees the same: here the stub's mean is taken of each part.
    clean, images = jax.tree.map(lambda x: jnp.concatenate([x, x]), (CURVED.clean, CURVED.images))
    doubled = AdversarialBatch(clean._replace(labels=clean.labels), images)
    parts = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), doubled)._replace(model_state=STATE)
    objective = MLCAT(make(PGDAT), minimum=MIDDLE, gamma=0.05, steps=2)
    np.testing.assert_allclose(perturbed(objective, batch=parts)["w"], perturbed(objective)["w"], rtol=1e-4)
    assert cut(clean.labels, 2).shape == (2, 4)


def test_forwards():
    assert train_forwards(value, MLCAT(make(TRADES))) == "cac"
    assert train_forwards(perturb, MLCAT(make(PGDAT))) == ""


def test_with_awp_both_move_the_weights():
    for objective in (AWP(MLCAT(make(PGDAT))), MLCAT(AWP(make(PGDAT)))):
        alone = perturbed(MLCAT(make(PGDAT)))["w"]
        assert not np.allclose(perturbed(objective)["w"], alone, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"variant": "ls"}, {"variant": "ls", "scale_gradient": False}])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(options, scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    objective = MLCAT(make(PGDAT), **options)
    assert np.all(np.isfinite(perturbed(objective, params)["w"]))
    assert np.all(np.isfinite(gradient(objective, params, CURVED)[0]["w"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "wpp"}, "variant='wpp' is unknown; did you mean 'wp'?"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"minimum": -1.0}, "minimum=-1.0 must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        MLCAT(make(PGDAT), **options)
