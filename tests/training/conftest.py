"""A problem that compiles in seconds: 26 images of 8x8 in batches of 8 (3 steps an epoch), width 2, PGD-2."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import models
from piat_jax.attacks import pgd
from piat_jax.averaging import PIAT
from piat_jax.core.bound import bind
from piat_jax.core.types import TrainState
from piat_jax.objectives import NMSE
from piat_jax.training import Examples, Recipe, init_state, sgd


class Problem(NamedTuple):
    objective: NMSE
    examples: Examples
    recipe: Recipe
    key: jax.Array
    piat: object

    def state(self) -> TrainState:
        return PIAT().init(init_state(self.objective, self.recipe.optimizer, jnp.zeros((1, 8, 8, 1)), key=self.key))


@pytest.fixture(scope="session")
def problem():
    rng = np.random.default_rng(0)
    examples = Examples(
        jnp.asarray(rng.integers(0, 256, (26, 8, 8, 1), np.uint8)), jnp.asarray(rng.integers(0, 3, 26), jnp.int32)
    )
    model = models.create("small_resnet", num_classes=3, width=2, stage_sizes=(1,))
    objective = NMSE(model=model, attack=bind(pgd, eps=0.1, step_size=0.05, steps=2))
    recipe = Recipe(sgd(0.1, weight_decay=1e-3), batch_size=8, crop_padding=1, flip=True)
    return Problem(objective, examples, recipe, jax.random.key(3), jax.jit(PIAT(), donate_argnums=0))
