"""Methods and wrappers of one's own: one decorator declares them and gives them a name."""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import attack
from piat_jax.averaging import average
from piat_jax.configs import common
from piat_jax.core.checks import InputError
from piat_jax.core.trees import leaf_shapes
from piat_jax.core.types import Aux, Variables
from piat_jax.data import dataset
from piat_jax.models import model
from piat_jax.objectives import (
    LAS,
    METHODS,
    PGDAT,
    WRAPPERS,
    AttackedObjective,
    Distillation,
    Standard,
    Wrapper,
    WrapperState,
    method,
    wrapper,
)
from piat_jax.objectives.base import GROUPS, Forwarded, Terms, objective
from tests.objectives.stub import BATCH, CONTEXT, IMAGES, MODEL, PARAMS, STATE, make, perturb, state_of, value


@pytest.fixture(autouse=True)
def _registries_as_they_were():
    before = [(registry, dict(registry)) for registry in (METHODS, WRAPPERS)]
    yield
    for registry, entries in before:
        for name in set(registry) - set(entries):
            del registry[name]


def test_a_method_is_declared_and_named_by_one_decorator():
    @method("mine", title="Mine", summary="Half of it.", paper="nobody")
    class Mine(AttackedObjective):
        weight: float = 0.5

        def terms(self, outputs, objective_state, context):
            labels = outputs.batch.clean.labels
            return Terms(self.weight * losses.cross_entropy(outputs.logits["adversarial"], labels))

    assert METHODS["mine"] is Mine
    assert METHODS.about("mine") == ("mine", "Mine", "Half of it.", "nobody")
    built = make(Mine)
    assert 0.5 in jax.tree.leaves(built)
    assert built == make(Mine)
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.weight = 1.0
    loss = jax.jit(lambda one: value(one)[0])
    np.testing.assert_allclose(loss(built), loss(make(Mine, weight=1.0)) / 2, rtol=1e-6)


def test_a_wrapper_likewise_and_the_old_way_goes_on():
    @wrapper("twice")
    class Twice(Wrapper):
        factor: float = 2.0

        def terms(self, outputs, objective_state, context):
            terms = super().terms(outputs, objective_state, context)
            return terms._replace(adversarial=self.factor * terms.adversarial)

    @objective
    class Plain(PGDAT):
        pass

    METHODS["plain"] = Plain
    assert WRAPPERS["twice"] is Twice
    assert METHODS.about("plain").title == "PLAIN"
    np.testing.assert_allclose(value(Twice(make(Plain)))[0], 2 * value(make(PGDAT))[0], rtol=1e-6)
    assert Twice.from_fields(make(PGDAT), {"factor": 3.0}, None).factor == 3.0


@pytest.mark.parametrize(("declare", "base"), [(method, "AttackedObjective"), (wrapper, "Wrapper")])
def test_a_class_of_another_kind_is_refused(declare, base):
    with pytest.raises(InputError, match=rf"{declare.__name__} 'mine': Mine is not an? {base}; make it a subclass"):

        @declare("mine")
        class Mine:
            pass

    with pytest.raises(InputError, match="already exists"):
        declare({"method": "trades", "wrapper": "awp"}[declare.__name__])(
            type("Other", (AttackedObjective if base == "AttackedObjective" else Wrapper,), {})
        )


class Counter(NamedTuple):
    """The own state of the wrapper below."""

    steps: jax.Array


@objective
class Handing(Wrapper):
    """A wrapper with a state, which hands its batch's mean from crafting to the loss and to the step after it."""

    needs_attack = False

    def init_own(self, variables, images, *, key):
        return Counter(jnp.int32(0))

    def perturb(self, variables, objective_state, batch, context):
        adversarial = super().perturb(variables, objective_state, batch, context)
        return self.hand(adversarial, jnp.mean(batch.images))

    def terms(self, outputs, objective_state, context):
        terms = super().terms(outputs, objective_state, context)
        return terms._replace(metrics={**terms.metrics, "mean": self.handed(outputs.batch)})

    def after_step(self, variables, objective_state, batch, aux, context):
        state = super().after_step(variables, objective_state, batch, aux, context)
        return state._replace(own=Counter(state.own.steps + 1))


@objective
class Other(Handing):
    """A second one, which hands something else on."""

    def perturb(self, variables, objective_state, batch, context):
        return self.hand(super().perturb(variables, objective_state, batch, context), jnp.float32(7.0))

    def terms(self, outputs, objective_state, context):
        terms = super().terms(outputs, objective_state, context)
        return terms._replace(metrics={**terms.metrics, "other": self.handed(outputs.batch)})


def test_what_a_wrapper_hands_on_reaches_it_alone():
    inside = Handing(make(Standard))
    batch = perturb(Other(inside))
    metrics = value(Other(inside), batch=batch)[1].metrics
    assert metrics["other"] == 7.0
    assert inside.handed(batch) == jnp.mean(IMAGES)
    assert value(inside, batch=batch)[1].metrics["mean"] == jnp.mean(IMAGES)


def test_the_state_of_each_layer_is_its_own():
    objective = Other(Handing(make(Standard)))
    state = state_of(objective)
    assert state == WrapperState(Counter(0), WrapperState(Counter(0), ()))
    after = objective.after_step(Variables(PARAMS, STATE), state, BATCH, Aux(STATE, {}), CONTEXT)
    assert after == WrapperState(Counter(1), WrapperState(Counter(1), ()))
    assert list(leaf_shapes(after)) == ["own/steps", "inner/own/steps"]
    assert objective.after_epoch(after, CONTEXT) == after


def test_states_and_batches_of_an_earlier_release_go_on_with_a_warning():
    state = WrapperState("mine", WrapperState((), ()))
    with pytest.warns(DeprecationWarning, match=r'objective_state\["own"\] is called objective_state.own now'):
        assert state["own"] == "mine"
    assert state[0] == "mine"
    old = BATCH._replace(extra={"metrics": {"mine": jnp.float32(3.0)}, "model_state": {"mean": jnp.ones(2)}})
    new = BATCH._replace(metrics={"mine": jnp.float32(3.0)}, model_state={"mean": jnp.ones(2)})
    with pytest.warns(DeprecationWarning, match=r"AdversarialBatch\.extra") as told:
        loss, aux = value(make(PGDAT), batch=old)
    assert [str(one.message).split(" is")[0] for one in told] == [
        'AdversarialBatch.extra["model_state"]',
        'AdversarialBatch.extra["metrics"]',
    ]
    jax.tree.map(np.testing.assert_array_equal, (loss, aux), value(make(PGDAT), batch=new))
    assert aux.metrics["mine"] == 3.0
    assert np.all(aux.model_state["mean"] > 0.9)


class Files:
    """Resources that say what they were asked for."""

    def network(self, name, num_classes):
        return dataclasses.replace(MODEL) if (name, num_classes) == ("tiny", 26) else None

    def teacher(self, field, folder):
        return Variables({**PARAMS, "w": PARAMS["w"] + len(folder)}, STATE)


def test_text_of_a_config_becomes_what_it_names():
    fields = {**LAS.text_fields, "strategy": "tiny", "step_counts": (1, 2, 3), "step_levels": (1.0, 2.0, 3.0, 4.0, 5.0)}
    assert LAS.text_fields == {"strategy": "resnet18"}
    fields["eps_levels"] = tuple(map(float, range(3, 21)))
    built = LAS.from_fields(make(PGDAT), fields, Files())
    assert built.strategy == MODEL
    assert built.step_counts == (1, 2, 3)

    assert Distillation.text_fields == {"standard": "", "robust": ""}
    taught = Distillation.from_fields(make(PGDAT), {"standard": "a", "robust": "abc", "temperature": 3.0}, Files())
    np.testing.assert_array_equal(taught.standard.params["w"], PARAMS["w"] + 1)
    np.testing.assert_array_equal(taught.robust.params["w"], PARAMS["w"] + 3)
    assert (taught.temperature, jnp.shape(taught.inner_weight)) == (3.0, ())


@objective
class Returning(AttackedObjective):
    """A method whose terms are what the test says."""

    what: object = dataclasses.field(default=None, metadata={"static": True})

    def terms(self, outputs, objective_state, context):
        return self.what(losses.cross_entropy(outputs.logits["adversarial"], outputs.target))


@objective
class Adding(Wrapper):
    """A wrapper with nothing of its own but what its inner method gave."""

    def terms(self, outputs, objective_state, context):
        terms = super().terms(outputs, objective_state, context)
        return terms._replace(other=self.inner.what and 2 * terms.other)


@objective
class Silent(Wrapper):
    """A wrapper without terms of its own."""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (jnp.mean, "returned an array float32[]; give Terms(adversarial, other), each [B]"),
        (lambda one: one, "returned an array float32[4]; give Terms"),
        (lambda one: (one, one), "returned a tuple of 2; give Terms"),
        (lambda one: None, "returned None; give Terms"),
        (lambda one: Terms(one.mean()), "returned Terms with adversarial an array float32[]; give one value per ex"),
        (lambda one: Terms(one[:, None]), "returned Terms with adversarial an array float32[4, 1]; give one value"),
        (lambda one: Terms(one, one.mean()), "returned Terms with other an array float32[]; give one value per exam"),
        (lambda one: Terms(one, one[:2]), "returned Terms with other an array float32[2]; give one value per example"),
        (lambda one: Terms(one, 0.5), "returned Terms with other 0.5; give one value per example, [4]"),
        (lambda one: Terms(0.0), "returned Terms with adversarial 0.0; give one value per example, [4]"),
    ],
)
@pytest.mark.parametrize("around", [lambda inner: inner, Silent, Adding])
def test_what_terms_may_not_return(what, message, around):
    with pytest.raises(InputError, match="^" + re.escape("Returning.terms " + message)):
        jax.eval_shape(lambda: value(around(make(Returning, what=what))))


def test_terms_without_a_second_part_and_a_wrapper_that_scales_them_are_legal():
    plain = make(Returning, what=Terms)
    np.testing.assert_array_equal(value(Adding(plain))[0], value(plain)[0])
    scaled = jax.jit(lambda factor: value(type("Scaling", (Silent,), {"terms": scale(factor)})(plain))[0])
    np.testing.assert_allclose(scaled(3.0), 3 * value(plain)[0], rtol=1e-6)


def scale(factor):
    def terms(self, outputs, objective_state, context):
        inside = self.inner.terms(outputs, objective_state.inner, context)
        return Terms(factor * inside.adversarial, factor * inside.other)

    return terms


def test_a_method_needs_terms():
    @objective
    class Empty(AttackedObjective):
        pass

    with pytest.raises(InputError, match="Empty has no terms; define terms"):
        value(make(Empty))
    with pytest.raises(InputError, match="Empty has no terms; define terms"):
        value(Silent(make(Empty)))


@pytest.mark.parametrize(
    ("forwards", "message"),
    [
        ("adversarial", "PGDAT.forwards is 'adversarial'; give a tuple of kinds of images, such as ('adversarial',)"),
        ((), "PGDAT.forwards is (); give a tuple of kinds"),
        (("adversarial", "natural"), "PGDAT.forwards names 'natural', but inputs gives 'clean', 'adversarial'; name"),
    ],
)
def test_forwards_are_kinds_of_images(forwards, message):
    kind = type("PGDAT", (PGDAT,), {"forwards": forwards})
    with pytest.raises(InputError, match="^" + re.escape(message)):
        value(make(kind))


def test_logits_of_a_kind_that_was_not_forwarded():
    @objective
    class Natural(PGDAT):
        def terms(self, outputs, objective_state, context):
            return Terms(losses.cross_entropy(outputs.logits["natural"], outputs.target))

    with pytest.raises(InputError, match=re.escape("logits['natural']: only 'adversarial' was forwarded; add")):
        value(make(Natural))
    both = jax.tree.map(lambda logits: logits + 1, Forwarded(clean=1, adversarial=2))
    assert isinstance(both, Forwarded)
    assert both == {"clean": 2, "adversarial": 3}
    with pytest.raises(InputError, match="only 'clean', 'adversarial' were forwarded"):
        both["mid"]


@pytest.mark.parametrize(("declare", "base"), [(method, PGDAT), (wrapper, Wrapper)])
def test_every_field_has_a_default(declare, base):
    with pytest.raises(InputError, match=r"'mine': field 'weight' of Mine has no default; give it one"):

        @declare("mine")
        class Mine(base):
            weight: float

    assert "mine" not in METHODS
    assert "mine" not in WRAPPERS


def test_a_wrapper_that_reads_the_config_itself_needs_no_default():
    @wrapper("mine")
    class Mine(Wrapper):
        network: str

        @classmethod
        def from_fields(cls, inner, fields, resources):
            return cls(inner, network="known", **fields)

    assert Mine.from_fields(make(PGDAT), {}, None).network == "known"


@pytest.mark.parametrize("declare", [method, wrapper, average, attack, model, dataset])
def test_a_decorator_without_parentheses(declare):
    name = {average: "average", attack: "attack"}.get(declare) or declare.__name__
    with pytest.raises(InputError, match=re.escape(f"@{name} above 'Mine' has no name; write @{name}(\"name\", title")):

        @declare
        class Mine:
            pass


def test_no_wrapper_has_the_name_of_a_field_of_every_config():
    assert set(common.get_config("pgd_at+piat+ema")) == set(GROUPS)
    for name in GROUPS:
        with pytest.raises(InputError, match=f"wrapper '{name}' has the name of a field of every config"):
            wrapper(name)(type("Mine", (Wrapper,), {}))
