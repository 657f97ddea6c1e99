"""Every method from its config line: it trains, alone and with PIAT, resumes exactly, and compiles once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.averaging import AVERAGES
from piat_jax.checkpoint import Checkpoints
from piat_jax.core.types import Batch, Variables
from piat_jax.data import Split
from piat_jax.experiment import evaluation, hooks
from piat_jax.experiment.config import load as read_config
from piat_jax.experiment.methods import method_groups, parse_method
from piat_jax.objectives import METHODS, WRAPPERS
from piat_jax.training import Examples, fit, init_state, train_steps
from tests.objectives.stub import CONTEXT

RNG = np.random.default_rng(0)
TRAIN = Split(RNG.integers(0, 256, (16, 4, 4, 1), np.uint8), RNG.integers(0, 3, 16).astype(np.int32))
SMALL = {
    "model.name": "mlp",
    "batch_size": "8",
    "epochs": "2",
    "attack.steps": "2",
    "optimizer.lr_values": "0.05,0.05,0.05,0.05",
    "evaluation.batch_size": "16",
    "dataset.crop_padding": "0",
    "dataset.flip": "false",
    "dataset.validation_examples": "8",
}
# Each part at least once, with others where it may meet them: compiling takes seconds each.
STACKS = (
    "free", "grad_align", "trades+multi_norm", "multi_norm",
    "standard", "pgd_at", "alp+awp+seat", "nmse+rpat+fawa", "mart+consistency+rpat", "mart+fat", "gairat", "cfa",
    "trades+cfa", "trades+las", "awp+las", "awp+ecas", "trades+awp+rat", "rebat", "rpatpp", "ard_prm", "mix", "kd+swa",
    "trades+rpat+mail+awp+ecas+ema", "score+mlcat", "ikl+ewat", "stat+sovr", "hat", "uiat", "dafa", "mma", "trades+te",
    "te+adr", "cure", "lbgat", "trades+generalist",
)  # fmt: skip
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder with a checkpoint to be taught by."""
    folder = tmp_path_factory.mktemp("teacher")
    config = read_config("configs/cifar10_resnet18.py", SMALL)
    objective = config.build_objective(config.build_model(3))
    state = init_state(objective, config.build_recipe(16).optimizer, jnp.zeros((1, 4, 4, 1)), key=KEY)
    Checkpoints.of_run(folder).save("best", state, {"epoch": 1})
    return folder


def read(method, teacher, **more):
    fields = dict(SMALL)
    parts = method.split("+")
    if "kd" in parts:
        fields |= {"kd.standard": str(teacher), "kd.robust": str(teacher)}
    if "hat" in parts:
        fields |= {"hat.standard": str(teacher)}
    if "lbgat" in parts:
        fields |= {"lbgat.guide": "mlp"}
    if "generalist" in parts:
        fields |= {"generalist.every": "1"}
    if parts[0] == "multi_norm":
        fields |= {"multi_norm.how": "errors"}
    if "las" in parts:
        fields |= {"las.strategy": "mlp", "las.interval": "2", "las.step_counts": "1,2"}
    # What begins late begins in the second epoch.
    groups = method_groups(parse_method(method))
    fields |= {f"{group}.start": "0.5" for group in groups if group != "attack" and "start" in groups[group]}
    return read_config(f"configs/cifar10_resnet18.py:{method}", {**fields, **more})


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(one), jax.tree.leaves(other))


@pytest.mark.parametrize("method", STACKS)
def test_trains_alone_and_with_piat_resumes_and_compiles_once(method, teacher, tmp_path):
    compiled = train_steps._cache_size()
    recipe = None
    for name in (method, f"{method}+piat"):
        config = read(name, teacher)
        net = config.build_model(3)
        objective = config.build_objective(net, (4, 4, 1), examples=len(TRAIN.labels))
        # One optimizer object, as equal ones would not share a compilation.
        recipe = recipe or config.build_recipe(16)
        epoch_end = hooks.epoch_end(config, net, jnp.asarray(TRAIN.images), 3, TRAIN)
        checkpoints = Checkpoints(tmp_path / name)

        def start():
            images = jnp.zeros((8 * objective.views, 4, 4, 1))  # noqa: B023
            state = init_state(objective, recipe.optimizer, images, key=KEY)  # noqa: B023
            return hooks.start(config, state)  # noqa: B023

        def save(state, record):
            if record.epoch == 1:
                checkpoints.save("last", state, {"epoch": 1})  # noqa: B023
            for metric in record.train.values():
                assert np.isfinite(metric)

        train = functools.partial(
            fit,
            objective=objective,
            examples=Examples(*map(jnp.asarray, TRAIN)),
            key=KEY,
            recipe=recipe,
            epochs=2,
            epoch_end=epoch_end,
        )
        first = jax.tree.map(np.asarray, start().params)
        whole = train(start(), on_epoch=save)
        same(whole_leaves := jax.tree.leaves(_data(whole)), jax.tree.leaves(_data(train(_load(checkpoints, start())))))
        assert all(np.all(np.isfinite(leaf)) for leaf in whole_leaves)
        assert not np.array_equal(first["linear"]["dense"]["kernel"], whole.params["linear"]["dense"]["kernel"])
        variables = evaluation.evaluated(objective, whole)
        assert jax.tree.structure(variables) == jax.tree.structure(whole.variables)
    assert train_steps._cache_size() == compiled + 1


def _load(checkpoints, state):
    # As fresh arrays: those of a checkpoint are bound to a device, which is another program to the compiler.
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), checkpoints.load_state("last", state))


def _data(state):
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


# How far beyond the attack's eps a method may go.
FARTHEST = {"ecas": 12 / 8, "las": 15 / 8, "mma": 1.05 * 4, "multi_norm": 4.0}  # L-inf of 16 pixels


@pytest.mark.parametrize("method", [*METHODS, *WRAPPERS, "awp+ecas", "awp+las"])
def test_crafting_in_l2_stays_in_the_ball_and_is_a_constant(method, teacher):
    config = read(method, teacher, **{"attack.norm": "l2", "attack.eps": "0.5", "attack.step_size": "0.2"})
    objective = config.build_objective(config.build_model(3), (4, 4, 1), examples=16)
    size = objective.views
    images = jnp.tile(jnp.asarray(TRAIN.images[:4] / 255, jnp.float32), (size, 1, 1, 1))
    batch = Batch(images, jnp.tile(jnp.arange(4) % 3, size), jnp.arange(4 * size))
    variables = objective.model.init(jax.random.key(0), images[:1])
    state = objective.init(variables, images, key=KEY)
    context = CONTEXT._replace(epoch=jnp.int32(5))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def craft(params):
        crafted = objective.perturb(Variables(params, variables.model_state), state, batch, context)
        return jnp.sum(crafted.images), (crafted.images, crafted.clean.images)

    gradient, (crafted, clean) = craft(variables.params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    lengths = np.linalg.norm(np.reshape(crafted - clean, (4 * size, -1)), axis=1)
    assert np.all(lengths <= 0.5 * FARTHEST.get(method, 1.0) + 1e-5)
    assert np.all((crafted >= 0) & (crafted <= 1))
    # MMA leaves misclassified examples alone, which these may all be; Free-AT begins with no perturbation.
    assert np.any(lengths > 0.1) or method in ("standard", "mma", "free")


def test_everything_is_in_a_stack():
    assert {part for stack in STACKS for part in stack.split("+")} == {*METHODS, *WRAPPERS, *AVERAGES}
