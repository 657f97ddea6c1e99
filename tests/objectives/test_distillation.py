import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.types import Variables
from piat_jax.objectives import PGDAT, TRADES
from piat_jax.objectives.awp import AWP
from piat_jax.objectives.distillation import Distillation, distillation_loss
from tests.objectives.stub import (
    CE,
    CE_CLEAN,
    CURVED,
    KL,
    LOG,
    OTHER,
    PARAMS,
    STATE,
    ZA,
    gradient,
    make,
    perturb,
    softmax,
    state_of,
    train_forwards,
    value,
)

STANDARD = Variables({"w": PARAMS["w"][:, ::-1], "scale": jnp.array([0.6, 1.2])}, {"mean": jnp.array([0.3, 0.2])})
ROBUST = Variables({"w": PARAMS["w"][::-1] / 2, "scale": jnp.array([1.1, 0.4])}, {"mean": jnp.array([0.7, 0.9])})
TEACHERS = {"standard": STANDARD, "robust": ROBUST}


def taught_by(teacher, tau):
    """KD on the adversarial images, in float64, with the teacher in evaluation mode."""
    params, state = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tuple(teacher))
    x = np.asarray(OTHER, np.float64).reshape(4, -1) - state["mean"]
    target = softmax(x * params["scale"] @ params["w"] / tau)
    return -(tau**2) * np.mean(np.sum(target * np.log(softmax(ZA / tau)), axis=1))


@pytest.mark.parametrize(("inner", "loss"), [(PGDAT, CE), (TRADES, CE_CLEAN + 6 * KL)])
def test_value(inner, loss):
    for tau in (2.0, 3.0):
        ours, aux = value(Distillation(make(inner), temperature=tau, **TEACHERS), batch=CURVED)
        standard, robust = taught_by(STANDARD, tau), taught_by(ROBUST, tau)
        np.testing.assert_allclose(ours, 0.3 * loss + 0.1 * standard + 0.6 * robust, rtol=1e-4)
        np.testing.assert_allclose(aux.metrics["distillation_standard"], standard, rtol=1e-4)
        np.testing.assert_allclose(aux.metrics["distillation_robust"], robust, rtol=1e-4)


def test_a_teacher_of_the_same_logits_teaches_nothing():
    logits = jnp.asarray(ZA, jnp.float32)
    loss = jax.jit(lambda z: jnp.sum(distillation_loss(logits, z, 2.0)))
    p = softmax(ZA / 2)
    np.testing.assert_allclose(loss(logits), -4 * np.sum(p * np.log(p)), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(logits), np.zeros_like(ZA), atol=1e-6)


@pytest.mark.parametrize("inner", [PGDAT, TRADES])
def test_without_teachers_it_is_the_method_inside(inner):
    alone = Distillation(make(inner), inner_weight=1.0, standard_weight=0.0, robust_weight=0.0, **TEACHERS)
    (ours, aux), (theirs, plain) = (gradient(o, PARAMS, CURVED) for o in (alone, make(inner)))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, ours, theirs)
    jax.tree.map(close, aux.model_state, plain.model_state)


def test_the_student_alone_is_differentiated():
    def loss(objective, params):
        return value(objective, params, CURVED)[0]

    objective = Distillation(make(PGDAT), **TEACHERS)
    at, ours = jax.jit(jax.grad(loss, argnums=(0, 1)))(objective, PARAMS)
    for teacher in (at.standard, at.robust):
        jax.tree.map(lambda g: np.testing.assert_array_equal(g, jnp.zeros_like(g)), teacher)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)), jnp.float32)
    high, low = (loss(objective, {**PARAMS, "w": PARAMS["w"] + h * direction}) for h in (1e-2, -1e-2))
    np.testing.assert_allclose(jnp.sum(ours["w"] * direction), (high - low) / 2e-2, rtol=2e-2)


def test_forwards():
    objective = Distillation(make(PGDAT), **TEACHERS)
    assert train_forwards(value, objective) == "a"
    assert [(train, chr(tag)) for train, tag in LOG] == [(True, "a"), (False, "a"), (False, "a")]
    assert train_forwards(value, Distillation(make(TRADES), **TEACHERS)) == "cac"
    assert train_forwards(perturb, objective) == ""


def test_crafting_is_that_of_the_method_inside():
    run = jax.jit(lambda objective, params: perturb(objective, params).images)
    objective = Distillation(make(PGDAT), **TEACHERS)
    np.testing.assert_array_equal(run(objective, PARAMS), run(make(PGDAT), PARAMS))
    craft = jax.jit(jax.grad(lambda p: jnp.sum(run(objective, p) ** 2)))
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, jnp.zeros_like(g)), craft(PARAMS))


def test_other_teachers_do_not_recompile():
    before = gradient._cache_size()
    for teachers in ((STANDARD, ROBUST), (ROBUST, STANDARD)):
        gradient(AWP(Distillation(make(PGDAT), standard=teachers[0], robust=teachers[1])), PARAMS, CURVED)
    assert gradient._cache_size() == before + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be in (0, inf]"),
        ({"robust_weight": -0.6}, "robust_weight=-0.6 must be at least 0"),
        (
            {"robust": ROBUST._replace(params={**ROBUST.params, "w": jnp.zeros((2, 5))})},
            "robust/params/w has shape (2, 5) in the teacher and has shape (2, 3) in the model",
        ),
        (
            {"standard": STANDARD._replace(model_state={})},
            "standard/model_state/mean is missing in the teacher and has shape (2,) in the model",
        ),
        (
            {"standard": STANDARD._replace(params={**STANDARD.params, "b": jnp.zeros(3)})},
            "standard/params/b has shape (3,) in the teacher and is missing in the model",
        ),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        state_of(Distillation(make(PGDAT), **{**TEACHERS, **options}))


def test_good_teachers_are_accepted():
    assert state_of(Distillation(make(PGDAT), standard=Variables(PARAMS, STATE), robust=ROBUST)).own == ()
