"""The same training and evaluation on one device and on eight, which the tests emulate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import models
from piat_jax.averaging import PIAT
from piat_jax.checkpoint import Checkpoints
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.sharding import data_mesh, put_state, replicate
from piat_jax.evaluation import correct_under_attack
from piat_jax.objectives import PGDAT
from piat_jax.training import Examples, epoch, fit, run_epoch
from piat_jax.training.epoch import train_steps

PARTS = ("params", "model_state", "opt_state", "anchor")


def train(problem, mesh, epochs, state=None):
    end = jax.jit(PIAT(), donate_argnums=0)
    recipe = problem.recipe._replace(mesh=mesh)
    options = {"key": problem.key, "recipe": recipe, "epochs": epochs, "epoch_end": [end]}
    return fit(problem.state() if state is None else state, problem.objective, problem.examples, **options)


def close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)


@pytest.fixture(scope="module")
def trained(problem):
    return {count: train(problem, data_mesh(8, jax.devices()[:count]), 2) for count in (1, 8)}


def test_eight_devices_train_as_one(trained):
    one, eight = trained[1], trained[8]
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(eight)} == {8}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(eight))
    for name in PARTS:
        close(getattr(eight, name), getattr(one, name))


def test_the_work_is_shared_out(problem):
    recipe = problem.recipe._replace(mesh=data_mesh(8))
    numbers = (jnp.int32(0), jnp.int32(1), jnp.int32(1))
    arguments = replicate((problem.state(), problem.objective, problem.examples, problem.key, *numbers), recipe.mesh)
    text = train_steps.lower(*arguments, recipe=recipe).compile().as_text()
    assert "all-reduce" in text
    # Each device has one example of the eight: nowhere are there the activations of all.
    assert "f32[1,8,8,1]" in text
    assert "f32[8,8,8,1]" not in text


def test_the_flags_of_an_evaluation_are_the_same(problem, trained):
    flags = [
        correct_under_attack(
            make_logits_fn(problem.objective.model, trained[1].variables),
            problem.examples.images,
            problem.examples.labels,
            problem.objective.attack,
            key=problem.key,
            batch_size=10,
            mesh=data_mesh(8, jax.devices()[:count]),
        )
        for count in (1, 8)
    ]
    np.testing.assert_array_equal(*flags)
    assert 0 < flags[0].sum() < len(flags[0])


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_a_checkpoint_goes_on_on_other_devices(problem, trained, tmp_path, before, after):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("last", train(problem, data_mesh(8, jax.devices()[:before]), 1), {"epoch": 1})
    state = checkpoints.load_state("last", problem.state())
    assert int(state.epoch) == 1
    ended = train(problem, data_mesh(8, jax.devices()[:after]), 2, state)
    close(ended.params, trained[1].params)


def shares(state):
    """How many parts the matrices of a state's weights and momentum are in."""
    leaves = [leaf for leaf in jax.tree.leaves((state.params, state.opt_state)) if leaf.ndim > 1]
    return {leaf.size // leaf.addressable_shards[0].data.size for leaf in leaves}


def test_a_state_that_is_shared_out(problem, tmp_path, monkeypatch):
    net = models.create("mlp", num_classes=8, hidden=(16, 24))
    problem = problem._replace(
        objective=PGDAT(model=net, attack=problem.objective.attack),
        examples=Examples(problem.examples.images[:9], problem.examples.labels[:9]),
    )
    ended, checkpoints = {}, Checkpoints(tmp_path)
    for split in (False, True):
        recipe = problem.recipe._replace(mesh=data_mesh(8) if split else None, split_state=split)
        options = {"key": problem.key, "recipe": recipe, "epoch_end": [problem.piat]}
        state = fit(problem.state(), problem.objective, problem.examples, epochs=2, **options)
        ended[split] = state = put_state(state, recipe.mesh, split=split)
        checkpoints.save(("last", "best")[split], state, {"epoch": 2})
    close(*({name: getattr(ended[split], name) for name in PARTS} for split in (True, False)))
    for leaf in jax.tree.leaves((ended[True].params, ended[True].opt_state, ended[True].anchor)):
        assert leaf.addressable_shards[0].data.size * (8 if leaf.ndim > 1 else 1) == leaf.size
    # It is before each chunk of steps and after it, not only where it is put for the checkpoint.
    given = []

    def watched(state, *arguments, **options):
        given.append(shares(state))
        return train_steps(state, *arguments, **options)

    monkeypatch.setattr(epoch, "train_steps", watched)
    options = {"key": problem.key, "recipe": recipe, "epochs": 2, "steps_per_chunk": 50}
    state, _ = run_epoch(problem.state(), problem.objective, problem.examples, **options)
    assert [*given, shares(state)] == [{8}, {8}]
    # The largest axis that eight divides.
    kernel = ended[True].params["hidden1"]["dense"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 3)
    # Written in parts and read whole, and the other way round.
    alone = checkpoints.load_state("best", problem.state())
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(alone)} == {1}
    jax.tree.map(np.testing.assert_array_equal, alone, ended[True])
    again = checkpoints.load_state("last", put_state(problem.state(), data_mesh(8), split=True))
    assert jax.tree.map(lambda x: x.sharding.spec, again.params) == jax.tree.map(
        lambda x: x.sharding.spec, ended[True].params
    )
    jax.tree.map(np.testing.assert_array_equal, again, ended[False])


@pytest.mark.parametrize(
    ("batch_size", "devices", "used"), [(8, 8, 8), (12, 8, 6), (7, 4, None), (4, 1, None), (2, 8, 2)]
)
def test_as_many_devices_as_have_equal_shares(batch_size, devices, used):
    mesh = data_mesh(batch_size, jax.devices()[:devices])
    assert (mesh and mesh.size) == used
