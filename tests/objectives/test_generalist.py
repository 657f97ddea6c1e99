import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import Aux, Batch, Variables
from piat_jax.objectives import AWP, PGDAT, TRADES, Generalist
from piat_jax.training import init_state, sgd, train_step
from tests.objectives.numeric import check, cross_entropy, slope
from tests.objectives.stub import (
    CLEAN,
    CONTEXT,
    CURVED,
    IMAGES,
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

X = np.asarray(IMAGES, np.float64).reshape(4, -1)
RATES = (0.1, 0.05)


def generalist(method=PGDAT, **options):
    own = {name: options.pop(name) for name in list(options) if name in Generalist.__dataclass_fields__}
    return Generalist(make(method, **options), **own)


def at(epoch, epochs=12):
    return CONTEXT._replace(epoch=jnp.int32(epoch), epochs=jnp.int32(epochs))


def test_loss_attack_and_forwards_are_those_inside():
    check(generalist(), lambda clean, adversarial, w: cross_entropy(adversarial, Y), batch=CURVED)
    for method in (PGDAT, TRADES):
        np.testing.assert_array_equal(
            jax.jit(perturb)(generalist(method)).images, jax.jit(perturb)(make(method)).images
        )
        ours = train_forwards(value, generalist(method), PARAMS, CURVED)
        assert ours == train_forwards(value, make(method), PARAMS, CURVED)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Images, centred by their mean in training mode, times a kernel; the mean of all is kept."""

    def init(self, key, images):
        return Variables({"kernel": jnp.asarray(FIRST, jnp.float32)}, {"mean": jnp.zeros(2)})

    def apply(self, params, model_state, images, *, train, key=None):
        x = images.reshape(len(images), -1)
        mean = x.mean(0) if train else model_state["mean"]
        state = {"mean": 0.5 * model_state["mean"] + 0.5 * mean} if train else model_state
        return (x - mean[None]) @ params["kernel"], state


FIRST = 3 * np.random.default_rng(4).normal(size=(2, 3))


def unmoved(logits_fn, images, labels, *, key, indices=None):
    """An attack that brightens each image, whatever the model."""
    return images + 0.25 * images**2


def interp(t, epochs):
    return np.interp(t, [0, epochs // 3, epochs * 2 // 3, epochs], [1, 1, 1, 0.4])


class Average:
    """The moving average of a learner's kernel and mean."""

    def __init__(self):
        self.values, self.step = [FIRST, np.zeros(2)], 0

    def see(self, values):
        decay = min(0.4, (self.step + 1) / (self.step + 10))
        self.values = [decay * old + (1 - decay) * new for old, new in zip(self.values, values)]
        self.step += 1


class Learner:
    """A kernel that learns by SGD."""

    def __init__(self, weight_decay):
        self.kernel, self.mean, self.velocity, self.weight_decay = FIRST, np.zeros(2), 0.0, weight_decay

    def step(self, x, rate, momentum, target):
        def loss(kernel):
            return -np.mean(np.sum(target * np.log(softmax((x - x.mean(0)) @ kernel)), axis=1))

        self.velocity = momentum * self.velocity + slope(loss, self.kernel) + self.weight_decay * self.kernel
        self.kernel = self.kernel - rate * self.velocity
        self.mean = 0.5 * self.mean + 0.5 * x.mean(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_run_is_that_of_the_formula(smoothing):
    """Six epochs of two steps; both learners start from the mix in epochs 4 and 6, counted from 1."""
    epochs, target = 6, (1 - smoothing) * np.eye(3)[Y] + smoothing * (1 - np.eye(3)[Y]) / 2
    method = PGDAT(model=Kernel(), attack=unmoved, label_smoothing=smoothing)
    objective = Generalist(method, every=2, start=0.5, decay=0.4, momentum=0.8, weight_decay=0.2)
    optimizer = sgd(lambda step: jnp.where(step < 6, *RATES), momentum=0.9, weight_decay=0.1)
    state = init_state(objective, optimizer, IMAGES[:1], key=jax.random.key(0))
    robust, natural = Learner(0.1), Learner(0.2)
    of_robust, of_natural, mixed = Average(), Average(), Average()
    step = jax.jit(lambda state: train_step(objective, optimizer, state, CLEAN, key=jax.random.key(1), epochs=epochs))
    for epoch in range(epochs):
        state = dataclasses.replace(state, epoch=jnp.int32(epoch))
        for _ in range(2):
            rate = RATES[0] if int(state.step) < 6 else RATES[1]
            state, _ = step(state)
            robust.step(X + 0.25 * X**2, rate, 0.9, target)
            of_robust.see((robust.kernel, robust.mean))
            natural.step(X, rate, 0.8, target)
            of_natural.see((natural.kernel, natural.mean))
            share = interp(epoch + 1, epochs)
            mixed.see([share * a + (1 - share) * b for a, b in zip(of_robust.values, of_natural.values)])
            if epoch + 1 >= 4 and (epoch + 1) % 2 == 0:
                robust.kernel, robust.mean = natural.kernel, natural.mean = mixed.values
            own = state.objective_state.own
            for kernel, mean, found in (
                (robust.kernel, robust.mean, state.variables),
                (natural.kernel, natural.mean, own.natural.variables),
                (*of_robust.values, own.of_robust),
                (*of_natural.values, own.of_natural),
                (*mixed.values, own.mixed),
                (*mixed.values, objective.eval_variables(state.variables, state.objective_state)),
            ):
                np.testing.assert_allclose(found.params["kernel"], kernel, rtol=2e-4, atol=2e-5)
                np.testing.assert_allclose(found.model_state["mean"], mean, rtol=1e-4, atol=1e-6)
        state = dataclasses.replace(state, objective_state=objective.after_epoch(state.objective_state, at(epoch)))


@pytest.mark.parametrize("epochs", [1, 5, 12, 120])
def test_the_share_of_the_robust_learner(epochs):
    for epoch in range(epochs):
        np.testing.assert_allclose(generalist().share_now(at(epoch, epochs)), interp(epoch + 1, epochs), rtol=1e-5)
    assert generalist(last_share=1.0).share_now(at(epochs - 1, epochs)) == 1


def test_in_which_epochs_learners_start_from_the_mix():
    due = [epoch + 1 for epoch in range(120) if generalist().due(at(epoch, 120))]
    assert due == [75, 80, 85, 90, 95, 100, 105, 110, 115, 120]


def test_the_mix_reaches_the_model_through_other_wrappers():
    now, own = Variables(PARAMS, STATE), generalist(every=1, start=0.0)
    outside = AWP(own)
    state = state_of(outside)
    other = jax.tree.map(lambda leaf: leaf + 1, now)
    state = state._replace(inner=state.inner._replace(own=state.inner.own._replace(mixed=other)))
    jax.tree.map(np.testing.assert_array_equal, outside.next_variables(now, state, CONTEXT), other)
    plain = make(TRADES)
    assert plain.next_variables(now, (), CONTEXT) is now
    assert AWP(plain).next_variables(now, state_of(AWP(plain)), CONTEXT) is now


def test_the_natural_learner_is_told_what_the_batch_says():
    target = jnp.full((4, 3), 1 / 3)
    aux = Aux(STATE, {}, {"adversarial": jnp.zeros((4, 3))})

    def natural(batch):
        crafted = CURVED._replace(clean=batch)
        after = generalist().after_step(Variables(PARAMS, STATE), state_of(generalist()), crafted, aux, CONTEXT)
        return after.own.natural.params["w"]

    assert not np.array_equal(natural(CLEAN), natural(Batch(IMAGES, CLEAN.labels, CLEAN.indices, target)))


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_at_no_and_at_saturated_logits(scale):
    params = {**PARAMS, "w": scale * jnp.sign(PARAMS["w"])}
    assert np.all(np.isfinite(gradient(generalist(), params, CURVED)[0]["w"]))
    aux = Aux(STATE, {}, {"adversarial": jnp.zeros((4, 3))})
    now = Variables(params, STATE)
    state = generalist().init(now, IMAGES[:1], key=jax.random.key(0))
    for leaf in jax.tree.leaves(generalist().after_step(now, state, CURVED, aux, CONTEXT)):
        assert np.all(np.isfinite(leaf))


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match=re.escape("every=0 must be")):
        generalist(every=0)
    with pytest.raises(InputError, match=re.escape("last_share=1.5")):
        generalist(last_share=1.5)
    with pytest.raises(InputError, match=re.escape("decay=2.0")):
        generalist(decay=2.0)
    aux = Aux(STATE, {}, {"adversarial": jnp.zeros((4, 3))})
    context = CONTEXT._replace(trial_step=None)
    with pytest.raises(InputError, match="Generalist needs the learning rate of the run's optimizer"):
        generalist().after_step(Variables(PARAMS, STATE), state_of(generalist()), CURVED, aux, context)
