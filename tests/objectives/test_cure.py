import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.rng import named_key
from piat_jax.core.types import AdversarialBatch, Aux, Variables
from piat_jax.objectives import AWP, CURE, PGDAT, TRADES
from piat_jax.objectives.base import WrapperState
from piat_jax.objectives.cure import OfAverage, Revised, conserved
from tests.objectives.numeric import PROBED, UNMOVED, check, cross_entropy, divergence, logits, probe, slope
from tests.objectives.stub import (
    CLEAN,
    CONTEXT,
    IMAGES,
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

AVERAGE = Revised({"w": PARAMS["w"][:, ::-1] / 3, "scale": jnp.array([0.6, 1.2])}, {"mean": jnp.array([0.2, 0.4])})
AVERAGED = WrapperState(AVERAGE, ())
OF_CLEAN, OF_OTHER = (logits(x, np.asarray(AVERAGE.params["w"], np.float64), scale=[0.6, 1.2]) for x in (IMAGES, OTHER))
HANDED = OfAverage(jnp.asarray(OF_CLEAN, jnp.float32), jnp.asarray(OF_OTHER, jnp.float32), AVERAGE.model_state)
BATCH = CURE(make(PGDAT)).hand(AdversarialBatch(CLEAN, OTHER), HANDED)


def loss(clean_weight, robust_weight, consistency, inner):
    def of(clean, adversarial, w):
        drawn = divergence(softmax(OF_CLEAN), softmax(clean)) + divergence(softmax(OF_OTHER), softmax(adversarial))
        inside = robust_weight * inner(clean, adversarial)
        return clean_weight * cross_entropy(clean, Y) + inside + consistency * drawn

    return of


def of_pgd_at(clean, adversarial):
    return cross_entropy(adversarial, Y)


def of_trades(clean, adversarial):
    return cross_entropy(clean, Y) + 6 * divergence(softmax(clean), softmax(adversarial))


@pytest.mark.parametrize("weights", [(0.1, 0.9, 1.0), (0.5, 0.5, 0.0), (0.0, 1.0, 2.0)])
@pytest.mark.parametrize(("method", "inner"), [(PGDAT, of_pgd_at), (TRADES, of_trades)])
def test_loss_and_gradient_of_all_weights(method, inner, weights):
    names = ("clean_weight", "robust_weight", "consistency")
    objective = CURE(make(method), share=0.0, **dict(zip(names, weights)))
    check(objective, loss(*weights, inner), batch=BATCH)


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_the_smallest_entries_of_the_gradient_are_left_out(share):
    objective = CURE(make(PGDAT), share=share)
    whole = slope(lambda w: np.mean(loss(0.1, 0.9, 1.0, of_pgd_at)(logits(IMAGES, w), logits(OTHER, w), w)))
    expected = np.where(np.abs(whole) < np.percentile(np.abs(whole), 100 * share), 0.0, whole)
    found = gradient(objective, PARAMS, BATCH)[0]
    np.testing.assert_allclose(found["w"], expected, rtol=1e-3, atol=1e-5)
    assert np.sum(found["w"] == 0) == {0.3: 2, 0.5: 3, 1.0: 5}[share]
    assert np.sum(found["scale"] == 0) == 1


def test_each_array_has_its_own_share_and_the_last_layer_none():
    tree = {"conv": {"kernel": jnp.array([4.0, 3.0, 2.0, 1.0])}, "linear": {"kernel": jnp.array([0.1, 5.0])}}
    weights = {"conv": {"kernel": jnp.array([0.1, -0.2, 0.3, -0.4])}, "linear": {"kernel": jnp.array([0.1, 1.0])}}

    def of(tree):
        kept = conserved(tree, 0.5)
        return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(weights)))

    found = jax.jit(jax.grad(of))(tree)
    np.testing.assert_allclose(found["conv"]["kernel"], [0.0, 0.0, 0.3, -0.4])
    np.testing.assert_allclose(found["linear"]["kernel"], [0.1, 1.0])
    jax.tree.map(np.testing.assert_array_equal, conserved(tree, 0.5), tree)


def crafted(objective, state=AVERAGED):
    return jax.jit(objective.perturb)(Variables(PARAMS, STATE), state, CLEAN, CONTEXT)


@pytest.mark.parametrize("method", [PGDAT, TRADES])
def test_the_attack_maximises_the_divergence(method):
    found = np.asarray(crafted(CURE(make(method, attack=probe))).images - IMAGES)[:, 0, 0, 0]
    np.testing.assert_allclose(found, divergence(softmax(UNMOVED), softmax(PROBED)), rtol=1e-3, atol=1e-5)


def test_the_average_sees_both_images_with_statistics_of_its_own():
    objective = CURE(make(PGDAT))
    batch = crafted(objective)
    of_average, kernel = objective.handed(batch), np.asarray(AVERAGE.params["w"], np.float64)
    for ours, images in ((of_average.clean, IMAGES), (of_average.adversarial, batch.images)):
        np.testing.assert_allclose(ours, logits(images, kernel, scale=[0.6, 1.2]), rtol=1e-3, atol=1e-4)
    means = [np.asarray(x).reshape(4, -1).mean(0) for x in (IMAGES, batch.images)]
    expected = 0.9 * (0.9 * np.array([0.2, 0.4]) + 0.1 * means[0]) + 0.1 * means[1]
    np.testing.assert_allclose(of_average.model_state["mean"], expected, rtol=1e-5)


def test_the_average_is_drawn_now_and_then():
    objective, aux = CURE(make(PGDAT), rate=0.5, decay=0.8), Aux(STATE, {})
    state, expected, drawn = state_of(objective), np.asarray(PARAMS["w"], np.float64), []
    moved = Variables(jax.tree.map(lambda x: x + 1, PARAMS), STATE)
    for step in range(8):
        context = CONTEXT._replace(key=jax.random.key(step), step=jnp.int32(step))
        state = objective.after_epoch(objective.after_step(moved, state, BATCH, aux, context), context)
        drawn.append(bool(jax.random.uniform(named_key(context.key, "cure"), (), jnp.float32) < 0.5))
        if drawn[-1]:
            decay = min(1 - 1 / (step + 2), 0.8)
            expected = decay * expected + (1 - decay) * np.asarray(moved.params["w"])
        np.testing.assert_allclose(state.own.params["w"], expected, rtol=1e-5)
    assert 1 < sum(drawn) < 8
    np.testing.assert_array_equal(state.own.model_state["mean"], HANDED.model_state["mean"])


def test_forwards_and_what_is_evaluated():
    assert train_forwards(value, CURE(make(PGDAT)), PARAMS, BATCH) == "ac"
    assert train_forwards(value, CURE(make(TRADES)), PARAMS, BATCH) == "cac"
    now = Variables(PARAMS, STATE)
    assert CURE(make(PGDAT)).eval_variables(now, AVERAGED) is now


def test_nothing_of_the_average_is_differentiated_and_its_buffers_are_its_own():
    def made(average):
        return jnp.sum(jax.tree.leaves(CURE(make(PGDAT)).handed(perturb_with(average)))[0])

    def perturb_with(average):
        return CURE(make(PGDAT)).perturb(Variables(PARAMS, STATE), average, CLEAN, CONTEXT)

    for leaf in jax.tree.leaves(jax.jit(jax.grad(made))(AVERAGED)):
        assert not np.any(leaf)
    own = state_of(CURE(make(PGDAT))).own
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((own, PARAMS, STATE))]
    assert len(set(pointers)) == len(pointers)


def test_awp_outside_perturbs_along_the_conserved_gradient():
    objective = AWP(CURE(make(PGDAT)))
    state = WrapperState((), AVERAGED)
    moved = jax.jit(objective.perturb_weights)(PARAMS, STATE, state, BATCH, CONTEXT)
    kept = gradient(CURE(make(PGDAT)), PARAMS, BATCH, AVERAGED)[0]["w"]
    np.testing.assert_array_equal(moved["w"] == PARAMS["w"], kept == 0)
    assert np.any(kept == 0)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    assert np.isfinite(value(CURE(make(PGDAT)), params, BATCH)[0])
    assert np.all(np.isfinite(gradient(CURE(make(PGDAT)), params, BATCH)[0]["w"]))
    assert np.all(np.isfinite(jax.jit(perturb)(CURE(make(PGDAT)), params).images))


def no_loss(logits_fn, images, labels, *, key, indices=None, eps=0.1):
    return images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share=1.5 must be in [0, 1]"),
        ({"rate": -0.1}, "rate=-0.1 must be"),
        ({"decay": 2.0}, "decay=2.0 must be in [0, 1]"),
        ({"consistency": -1.0}, "consistency=-1.0 must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        CURE(make(PGDAT), **options)


def test_other_attacks_and_parts_of_a_batch_are_refused():
    with pytest.raises(InputError, match="CURE sets the attack's 'loss', which this attack does not take"):
        CURE(make(PGDAT, attack=no_loss))
    with pytest.raises(InputError, match="CURE conserves weights by the full batch's gradient; leave it at 1"):
        AWP(CURE(make(PGDAT))).check_part(2)
