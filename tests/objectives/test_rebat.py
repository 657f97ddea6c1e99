import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.types import Aux, Variables
from piat_jax.objectives import PGDAT, TRADES, WrapperState
from piat_jax.objectives.awp import AWP
from piat_jax.objectives.base import Outputs
from piat_jax.objectives.rebat import MovingAverage, ReBAT, RPATpp
from tests.objectives.stub import (
    BATCH,
    CE,
    CONTEXT,
    CURVED,
    IMAGES,
    LOG,
    OTHER,
    PA,
    PARAMS,
    STATE,
    ZA,
    Stub,
    gradient,
    make,
    perturb,
    softmax,
    state_of,
    train_forwards,
    value,
)

EARLY = CONTEXT._replace(epoch=jnp.int32(104), epochs=jnp.int32(200))
LATE = EARLY._replace(epoch=jnp.int32(105))
AVERAGE = {
    "params": {"w": PARAMS["w"][:, ::-1], "scale": jnp.array([0.6, 1.2])},
    "model_state": {"mean": jnp.array([0.3, 0.2])},
}
STARTED = MovingAverage(**AVERAGE, started=jnp.array(True))
TAUGHT = WrapperState(STARTED, ())
AUX = Aux(STATE, {})
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Bent(Stub):
    """Logits that are no affine function of the images."""

    def apply(self, params, model_state, images, *, train, key=None):
        logits, state = super().apply(params, model_state, images, train=train)
        return logits + 0.1 * logits**2, state


def by_average(images, bend=0.0):
    """The average's logits in evaluation mode, in float64."""
    x = np.asarray(images, np.float64).reshape(4, -1) - np.asarray(AVERAGE["model_state"]["mean"])
    z = x * np.asarray(AVERAGE["params"]["scale"]) @ np.asarray(AVERAGE["params"]["w"], np.float64)
    return z + bend * z**2


def kl(p, q):
    return np.sum(p * np.log(p / q), axis=1)


def test_divergence_from_the_average_once_it_has_begun():
    expected = kl(softmax(by_average(OTHER)), PA).mean()
    objective = ReBAT(make(PGDAT), beta=0.7)
    loss, aux = value(objective, batch=CURVED, state=TAUGHT, context=LATE)
    np.testing.assert_allclose(loss, CE + 0.7 * expected, rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["divergence_from_average"], expected, rtol=1e-4)
    loss, aux = value(objective, batch=CURVED, state=TAUGHT, context=EARLY)
    np.testing.assert_allclose(loss, CE, rtol=1e-5)
    assert aux.metrics["divergence_from_average"] == 0


@pytest.mark.parametrize("mix", [0.3, 1.0])
def test_divergence_of_rpatpp_is_from_the_average_between_the_images(mix):
    between = IMAGES + mix * (OTHER - IMAGES)
    target = by_average(between, 0.1) - (1 - mix) * by_average(IMAGES, 0.1)
    expected = kl(softmax(target), softmax(mix * (ZA + 0.1 * ZA**2))).mean()
    objective = RPATpp(make(PGDAT, model=Bent()), mix=mix)
    ours = value(objective, batch=CURVED, state=TAUGHT, context=LATE)[1].metrics["divergence_from_average"]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    if mix == 1.0:
        rebat = value(ReBAT(objective.inner), batch=CURVED, state=TAUGHT, context=LATE)[1].metrics
        np.testing.assert_allclose(ours, rebat["divergence_from_average"], rtol=1e-5)


def test_until_the_first_step_after_its_start_the_average_is_the_weights():
    objective = ReBAT(make(PGDAT))
    start = state_of(objective)
    now = Variables({"w": PARAMS["w"] * 1.1, "scale": PARAMS["scale"] / 3}, {"mean": jnp.array([0.37, 0.11])})
    after_step = jax.jit(objective.after_step)
    early = after_step(now, start, BATCH, AUX, EARLY)
    # What moves the weights between epochs (PIAT) moves what is evaluated, and what teaches first.
    moved = Variables(PARAMS, STATE)
    jax.tree.map(np.testing.assert_array_equal, objective.eval_variables(moved, early), moved)
    np.testing.assert_allclose(value(objective, batch=CURVED, state=early, context=EARLY)[0], CE, rtol=1e-5)
    first = after_step(now, start, BATCH, AUX, LATE)
    jax.tree.map(np.testing.assert_array_equal, objective.eval_variables(moved, first), now)
    # From then on weights and statistics fade alike.
    second = after_step(moved, first, BATCH, AUX, LATE)
    mixed = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b, now, moved)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, objective.eval_variables(now, second), mixed)


@pytest.mark.parametrize("method", [ReBAT, RPATpp])
def test_the_first_step_has_nothing_to_learn_from_the_average(method):
    # Where the running statistics are those of the batch, as both modes then agree. Around an affine model, RPAT++'s
    # target is r z(x') then.
    params, mean = PARAMS, jnp.mean(OTHER.reshape(4, -1), axis=0)
    state = WrapperState(MovingAverage(params, {"mean": mean}, jnp.array(True)), ())
    loss, aux = value(method(make(PGDAT)), params, CURVED, state, LATE)
    np.testing.assert_allclose(aux.metrics["divergence_from_average"], 0, atol=1e-6)
    np.testing.assert_allclose(loss, CE, rtol=1e-4)


@pytest.mark.parametrize("method", [ReBAT, RPATpp])
def test_the_student_alone_is_differentiated(method):
    objective = method(make(PGDAT, model=Bent()))

    def loss(params, average, context=LATE):
        return value(
            objective, params, CURVED, WrapperState(MovingAverage(**average, started=jnp.array(True)), ()), context
        )[0]

    both = jax.jit(jax.grad(loss, argnums=(0, 1)))
    ours, teacher = both(PARAMS, AVERAGE)
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, jnp.zeros_like(g)), teacher)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)), jnp.float32)
    high, low = (loss({**PARAMS, "w": PARAMS["w"] + h * direction}, AVERAGE) for h in (1e-2, -1e-2))
    np.testing.assert_allclose(jnp.sum(ours["w"] * direction), (high - low) / 2e-2, rtol=2e-2)


@pytest.mark.parametrize(("method", "inner"), [(ReBAT, TRADES), (RPATpp, PGDAT)])
def test_without_its_term_it_is_the_method_inside(method, inner):
    run = jax.jit(jax.grad(functools.partial(value, context=LATE), argnums=1, has_aux=True))
    ours, aux = run(method(make(inner), beta=0.0), PARAMS, CURVED, TAUGHT)
    theirs, plain = gradient(make(inner), PARAMS, CURVED)
    jax.tree.map(close, ours, theirs)
    jax.tree.map(close, aux.model_state, plain.model_state)


@pytest.mark.parametrize(("method", "seen"), [(ReBAT, "a"), (RPATpp, "mc")])
def test_forwards(method, seen):
    objective = method(make(PGDAT))
    assert train_forwards(value, objective) == "a"
    assert len([train for train, _ in LOG if not train]) == len(seen)
    assert train_forwards(value, method(make(TRADES))) == "cac"
    assert train_forwards(perturb, objective) == ""
    LOG.clear()
    outputs = Outputs(
        {"adversarial": jnp.asarray(ZA, jnp.float32)}, BATCH, Variables(PARAMS, STATE), BATCH.clean.labels
    )
    objective.divergence(outputs, make_logits_fn(objective.model, Variables(**AVERAGE)))
    assert "".join(chr(tag) for _, tag in LOG) == seen


def test_the_attack_grows_where_it_is_strong():
    late = CONTEXT._replace(epoch=jnp.int32(100), epochs=jnp.int32(200))
    attack = bind(make(PGDAT).attack, steps=8)
    radius = jax.jit(lambda o, context: jnp.max(jnp.abs(perturb(o, context=context).images - IMAGES)))
    strong = ReBAT(make(PGDAT, attack=attack), strong=1.25, eps=0.08)
    early = late._replace(epoch=jnp.int32(99))
    np.testing.assert_allclose([radius(strong, early), radius(strong, late)], [0.08, 0.1], rtol=1e-4)
    # Without it the attack keeps what it was bound with, whatever eps says here.
    np.testing.assert_allclose(radius(ReBAT(make(PGDAT, attack=attack), eps=0.01), late), 0.1, rtol=1e-4)


def test_no_gradient_through_crafting():
    craft = jax.jit(jax.grad(lambda p: jnp.sum(perturb(ReBAT(make(PGDAT), strong=1.25), p).images ** 2)))
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, jnp.zeros_like(g)), craft(PARAMS))


def test_within_and_around_another_wrapper():
    for objective, state in (
        (AWP(ReBAT(make(PGDAT))), WrapperState((), TAUGHT)),
        (ReBAT(AWP(make(PGDAT))), WrapperState(STARTED, WrapperState((), ()))),
    ):
        loss, _ = value(objective, batch=CURVED, state=state, context=LATE)
        np.testing.assert_allclose(loss, CE + kl(softmax(by_average(OTHER)), PA).mean(), rtol=1e-4)
        jax.tree.map(
            np.testing.assert_array_equal, objective.eval_variables(Variables(PARAMS, STATE), state)._asdict(), AVERAGE
        )


def test_the_average_has_buffers_of_its_own():
    own = state_of(ReBAT(make(PGDAT))).own
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((own, PARAMS, STATE))]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (ReBAT, {"beta": -1.0}, "beta=-1.0 must be at least 0"),
        (ReBAT, {"decay": 1.5}, "decay=1.5 must be in [0, 1]"),
        (ReBAT, {"start": 105.0}, "start=105.0 must be a share of the run"),
        (ReBAT, {"strong": -1.0}, "strong=-1.0 must be at least 0"),
        (RPATpp, {"mix": 2.0}, "mix=2.0 must be in [0, 1]"),
    ],
)
def test_bad_arguments_are_refused(method, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        method(make(PGDAT), **options)
