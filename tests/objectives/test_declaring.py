"""Methods and wrappers of one's own: one decorator declares them and gives them a name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.core.checks import InputError
from piat_jax.core.types import Variables
from piat_jax.objectives import (
    LAS,
    METHODS,
    PGDAT,
    WRAPPERS,
    AttackedObjective,
    Distillation,
    Wrapper,
    method,
    wrapper,
)
from piat_jax.objectives.base import Terms, objective
from tests.objectives.stub import MODEL, PARAMS, STATE, make, value


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
    with pytest.raises(InputError, match=rf"{declare.__name__} 'mine': Mine is no {base}; make it a subclass"):

        @declare("mine")
        class Mine:
            pass

    with pytest.raises(InputError, match="is there already"):
        declare({"method": "trades", "wrapper": "awp"}[declare.__name__])(
            type("Other", (AttackedObjective if base == "AttackedObjective" else Wrapper,), {})
        )


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
