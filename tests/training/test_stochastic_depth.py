"""What training hands to a network that draws at random: keys by example, whatever the parts and the devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import models
from piat_jax.attacks import bind, pgd
from piat_jax.core import forward
from piat_jax.core.sharding import data_mesh
from piat_jax.models import LinenModel
from piat_jax.objectives import METHODS, WRAPPERS, Standard
from piat_jax.training import Examples, Recipe, fit, init_state, sgd
from piat_jax.training.step import train_step
from tests.training.test_microbatches import batch_of, close, method_of

KEY = jax.random.key(2)
RNG = np.random.default_rng(0)
EXAMPLES = Examples(
    jnp.asarray(RNG.integers(0, 256, (24, 16, 16, 3), np.uint8)), jnp.asarray(RNG.integers(0, 3, 24).astype(np.int32))
)


@pytest.mark.parametrize("name", [name for name in (*METHODS, *WRAPPERS) if name not in ("kd", "hat")])
def test_every_training_forward_of_every_method_has_a_key_for_each_image(name, monkeypatch):
    """But those of attacks, which see the whole network."""
    keys, apply = [], LinenModel.apply

    def recorded(self, params, model_state, images, *, train, key=None):
        if train:
            keys.append(None if key is None else (len(images), key.shape))
        return apply(self, params, model_state, images, train=train)

    def unrecorded(self, images):
        return apply(self.model, *self.variables, images, train=self.train)[0]

    method = method_of(name)
    optimizer, batch = sgd(0.1), batch_of(method)
    monkeypatch.setattr(LinenModel, "draws", True)
    monkeypatch.setattr(LinenModel, "apply", recorded)
    monkeypatch.setattr(forward._Forward, "__call__", unrecorded)

    @jax.eval_shape
    def stepped():
        state = init_state(method, optimizer, batch.images, key=KEY)
        return train_step(method, optimizer, state, batch, key=KEY, epochs=4)[0]

    assert stepped.params
    assert keys
    assert all(each is not None and each[1] == (each[0],) for each in keys)


def network(drop_path):
    return models.create("convnext", num_classes=3, depths=(1, 1), widths=(4, 8), drop_path=drop_path)


def problem(drop_path=0.5, **options):
    """A method, the recipe and the state before the first step."""
    objective = Standard(model=network(drop_path), attack=bind(pgd))
    recipe = Recipe(sgd(0.5), batch_size=8, **options)
    state = init_state(objective, recipe.optimizer, jnp.zeros((8, 16, 16, 3)), key=KEY)
    # Branches begin with a factor of 1e-6, at which nothing could be seen of them.
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 1e6 * leaf if "gamma" in jax.tree_util.keystr(path) else leaf, state.params
    )
    return objective, recipe, dataclasses.replace(state, params=params)


def trained(drop_path=0.5, **options):
    objective, recipe, state = problem(drop_path, **options)
    return fit(state, objective, EXAMPLES, key=KEY, recipe=recipe, epochs=1).params


def test_parts_and_devices_leave_out_the_same_branches():
    whole = trained()
    close(trained(microbatches=2), whole, rtol=1e-3, atol=1e-5)
    close(trained(mesh=data_mesh(8, jax.devices()[:2])), whole, rtol=1e-3, atol=1e-5)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), trained(0.0), whole)
    assert max(jax.tree.leaves(apart)) > 0.01


def test_steps_draw_anew():
    objective, recipe, state = problem()
    batch = batch_of(objective, 8, (16, 16, 3))

    @jax.jit
    def loss(step):
        at = dataclasses.replace(state, step=step)
        return train_step(objective, recipe.optimizer, at, batch, key=KEY, epochs=4)[1]["loss"]

    first, second = loss(jnp.int32(0)), loss(jnp.int32(1))
    assert first == loss(jnp.int32(0))
    assert first != second
