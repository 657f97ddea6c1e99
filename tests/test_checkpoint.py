import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.checkpoint import Checkpoints
from piat_jax.core.checks import InputError
from piat_jax.core.types import TrainState, Variables


def make(value=0.0, width=3):
    params = {"layer": {"kernel": jnp.full((2, width), value), "bias": jnp.zeros(width, jnp.bfloat16)}}
    return TrainState(
        step=jnp.int32(7),
        epoch=jnp.int32(2),
        params=params,
        model_state={"batch_stats": {"mean": jnp.full(width, value)}},
        opt_state=optax.sgd(0.1, momentum=0.9).init(params),
        objective_state=(),
        anchor=Variables(params, {}),
    )


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_state_comes_back_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = make(1.5)
    checkpoints.save("last", state, {"epoch": 2, "scores": {"test_pgd20": 0.5}})
    same(checkpoints.load_state("last", make()), state)
    same(checkpoints.load_variables("last", jax.eval_shape(lambda: make().variables)), state.variables)
    assert checkpoints.info("last")["scores"] == {"test_pgd20": 0.5}


def test_a_state_without_anchor(tmp_path):
    state = dataclasses.replace(make(2.0), anchor=None)
    Checkpoints(tmp_path).save("best", state, {"epoch": 1})
    same(Checkpoints(tmp_path).load_state("best", dataclasses.replace(make(), anchor=None)), state)


def test_a_save_replaces_its_predecessor_only(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("best", make(1.0), {"epoch": 1})
    for epoch in (1, 2, 3):
        checkpoints.save("last", make(10.0 * epoch), {"epoch": epoch})
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["3"]
    assert checkpoints.info("best")["epoch"] == 1
    assert float(checkpoints.load_state("last", make()).params["layer"]["kernel"][0, 0]) == 30
    assert float(checkpoints.load_state("best", make()).params["layer"]["kernel"][0, 0]) == 1


def test_the_same_epoch_may_be_saved_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("last", make(1.0), {"epoch": 5})
    checkpoints.save("last", make(2.0), {"epoch": 5})
    assert float(checkpoints.load_state("last", make()).params["layer"]["kernel"][0, 0]) == 2


def test_discard(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("best", make(), {"epoch": 1})
    assert "best" in checkpoints
    checkpoints.discard("best")
    checkpoints.discard("best")
    assert "best" not in checkpoints


def test_an_average_is_evaluated_and_training_goes_on_from_the_weights(tmp_path):
    state, checkpoints = make(), Checkpoints(tmp_path)
    average = jax.tree.map(lambda leaf: leaf + 1, state.variables)
    checkpoints.save("last", state, {"epoch": 1}, average)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load_variables("last", state.variables), average)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load_state("last", state).variables, state.variables)
    # The state's own weights are not saved twice.
    checkpoints.save("best", state, {"epoch": 1}, state.variables)
    assert not checkpoints.info("best")["separate"]


def test_another_model_is_refused_with_the_first_difference(tmp_path):
    Checkpoints(tmp_path).save("last", make(), {"epoch": 1})
    message = r"of another model: model_state/batch_stats/mean is \(3,\) there and \(4,\) in this config"
    with pytest.raises(InputError, match=message):
        Checkpoints(tmp_path).load_state("last", make(width=4))
    more = make().variables._replace(params={**make().params, "more": jnp.zeros(1)})
    with pytest.raises(InputError, match=r"params/more is absent there and \(1,\) in this config"):
        Checkpoints(tmp_path).load_variables("last", more)


def test_a_missing_checkpoint_names_what_there_is(tmp_path):
    with pytest.raises(InputError, match="no checkpoint 'best'; there is none"):
        Checkpoints(tmp_path).info("best")
    Checkpoints(tmp_path).save("last", make(), {"epoch": 1})
    with pytest.raises(InputError, match="no checkpoint 'best'; there is last"):
        Checkpoints(tmp_path).load_state("best", make())


def test_a_damaged_checkpoint_is_named(tmp_path):
    Checkpoints(tmp_path).save("last", make(), {"epoch": 1})
    for path in (tmp_path / "last" / "1" / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"checkpoint .*last cannot be read: "):
        Checkpoints(tmp_path).load_variables("last", make().variables)


def test_a_save_that_was_cut_off_leaves_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("last", make(1.0), {"epoch": 1})
    # What orbax leaves when it is killed while it writes: a folder of a temporary name.
    (tmp_path / "last" / "2.orbax-checkpoint-tmp-123").mkdir()
    assert float(checkpoints.load_state("last", make()).params["layer"]["kernel"][0, 0]) == 1
    checkpoints.save("last", make(2.0), {"epoch": 2})
    assert float(checkpoints.load_state("last", make()).params["layer"]["kernel"][0, 0]) == 2
