import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import AdversarialBatch, Aux, Variables
from piat_jax.objectives import AWP, LBGAT, PGDAT, TRADES
from piat_jax.objectives.base import WrapperState
from piat_jax.objectives.learner import Learner, learning_rate
from piat_jax.training import init_state, sgd, train_step
from tests.objectives.numeric import check, divergence, slope
from tests.objectives.stub import (
    CLEAN,
    CONTEXT,
    CURVED,
    IMAGES,
    MODEL,
    PARAMS,
    RATE,
    STATE,
    ZA,
    Y,
    gradient,
    make,
    perturb,
    softmax,
    state_of,
    train_forwards,
    value,
)

KERNEL = np.random.default_rng(5).normal(size=(2, 3))


@dataclasses.dataclass(frozen=True)
class Small:
    """A guide of another architecture: images, centred in training mode, times a kernel."""

    def init(self, key, images):
        return Variables({"kernel": jnp.asarray(KERNEL, jnp.float32)}, {"mean": jnp.zeros(2), "seen": jnp.zeros(())})

    def apply(self, params, model_state, images, *, train, key=None):
        x = images.reshape(len(images), -1)
        mean = x.mean(0) if train else model_state["mean"]
        after = {"mean": mean, "seen": model_state["seen"] + 1} if train else model_state
        return (x - mean[None]) @ params["kernel"], after


def lbgat(**options):
    guide = {name: options.pop(name) for name in ("momentum", "weight_decay") if name in options}
    return LBGAT(make(TRADES, clean_forwards=1, **options), guide=Small(), **guide)


def guided(kernel=KERNEL):
    x = np.asarray(IMAGES, np.float64).reshape(4, -1)
    return (x - x.mean(0)) @ kernel


BATCH = lbgat().hand(AdversarialBatch(CLEAN, CURVED.images), jnp.asarray(guided(), jnp.float32))


@pytest.mark.parametrize("beta", [6.0, 0.0])
def test_loss_and_gradient(beta):
    def loss(clean, adversarial, w):
        kl = divergence(softmax(clean), softmax(adversarial))
        return np.mean((adversarial - guided()) ** 2, axis=1) + beta * kl

    check(lbgat(beta=beta), loss, batch=BATCH)


def test_the_guide_is_asked_for_the_clean_images_in_training_mode():
    objective = lbgat()
    crafted = jax.jit(perturb)(objective)
    np.testing.assert_allclose(objective.handed(crafted), guided(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(crafted.images, jax.jit(perturb)(objective.inner).images)


def after(objective, state, context=CONTEXT, batch=BATCH):
    aux = Aux(STATE, {}, {"clean": jnp.zeros((4, 3)), "adversarial": jnp.asarray(ZA, jnp.float32)})
    return jax.jit(objective.after_step)(Variables(PARAMS, STATE), state, batch, aux, context)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_guide_takes_two_steps_of_sgd(smoothing):
    target = (1 - smoothing) * np.eye(3)[Y] + smoothing * (1 - np.eye(3)[Y]) / 2

    def loss(kernel):
        z = guided(kernel)
        return np.mean(np.mean((ZA - z) ** 2, axis=1) - np.sum(target * np.log(softmax(z)), axis=1))

    objective = lbgat(momentum=0.8, weight_decay=0.1, label_smoothing=smoothing)
    state, kernel, velocity = state_of(objective), KERNEL, np.zeros_like(KERNEL)
    for _ in range(2):
        state = objective.after_epoch(after(objective, state), CONTEXT)
        velocity = 0.8 * velocity + slope(loss, kernel) + 0.1 * kernel
        kernel = kernel - RATE * velocity
        np.testing.assert_allclose(state.own.params["kernel"], kernel, rtol=1e-4)
        np.testing.assert_allclose(state.own.momentum["kernel"], velocity, rtol=1e-4, atol=1e-5)
    # One forward a step updates the guide's statistics.
    assert state.own.model_state["seen"] == 2
    np.testing.assert_allclose(state.own.model_state["mean"], IMAGES.reshape(4, -1).mean(0), rtol=1e-5)


def test_the_learning_rate_is_that_of_the_runs_optimizer():
    np.testing.assert_allclose(learning_rate("LBGAT", CONTEXT, PARAMS), RATE, rtol=1e-6)
    schedule = optax.piecewise_constant_schedule(0.2, {1: 0.5})
    optimizer = sgd(schedule, momentum=0.9, weight_decay=0.1, max_norm=0.1)
    objective = LBGAT(make(TRADES, clean_forwards=1), guide=Small(), momentum=0.0, weight_decay=0.0)
    state = init_state(objective, optimizer, IMAGES[:1], key=jax.random.key(0))
    kernels = []
    for _ in range(2):
        before = state.objective_state.own.params["kernel"]
        state, _ = train_step(objective, optimizer, state, CLEAN, key=jax.random.key(1), epochs=4)
        kernels.append((before, state.objective_state.own))
    for (before, own), rate in zip(kernels, (0.2, 0.1)):
        np.testing.assert_allclose(before - rate * own.momentum["kernel"], own.params["kernel"], rtol=1e-5)
    with pytest.raises(InputError, match=r"LBGAT needs the learning rate of the run's optimizer; set context\.trial"):
        learning_rate("LBGAT", CONTEXT._replace(trial_step=None), PARAMS)


def test_the_guide_is_not_differentiated_by_the_models_loss():
    objective = lbgat()

    def loss(state):
        return value(objective, batch=perturb_with(objective, state), state=state)[0]

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(state_of(objective))):
        assert not np.any(leaf)


def perturb_with(objective, state):
    return objective.perturb(Variables(PARAMS, STATE), state, CLEAN, CONTEXT)


def test_forwards_and_what_is_evaluated():
    assert train_forwards(value, lbgat(), PARAMS, BATCH) == "ca"
    assert train_forwards(perturb, lbgat()) == ""
    now = Variables(PARAMS, STATE)
    assert lbgat().eval_variables(now, state_of(lbgat())) is now


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    assert np.isfinite(value(lbgat(), params, BATCH)[0])
    assert np.all(np.isfinite(gradient(lbgat(), params, BATCH)[0]["w"]))
    kernel = {"kernel": scale * jnp.sign(jnp.asarray(KERNEL, jnp.float32))}
    state = WrapperState(
        Learner(kernel, {"mean": jnp.zeros(2), "seen": jnp.zeros(())}, {"kernel": jnp.zeros((2, 3))}), ()
    )
    assert np.all(np.isfinite(after(lbgat(), state).own.params["kernel"]))


def test_it_goes_directly_around_trades():
    for inner in (make(PGDAT), AWP(make(TRADES))):
        with pytest.raises(InputError, match=f"but {type(inner).__name__} is inside; put it directly around TRADES"):
            LBGAT(inner, guide=MODEL)
    with pytest.raises(InputError, match=re.escape("momentum=-0.5 must be at least 0")):
        lbgat(momentum=-0.5)
