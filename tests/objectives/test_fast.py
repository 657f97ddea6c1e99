"""One-step training: N-FGSM, GradAlign, and Free-AT, whose perturbation goes on from step to step."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import n_fgsm
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.types import Batch, Variables
from piat_jax.data import Split
from piat_jax.data.batching import epoch_order
from piat_jax.objectives import PGDAT, FreeAT, GradAlign
from piat_jax.objectives.parts import check_parts
from piat_jax.training import Examples, Recipe, init_state, run_epoch, sgd, train_step
from piat_jax.training.streaming import Stream
from tests.objectives.stub import ATTACK, CLEAN, CONTEXT, IMAGES, LABELS, MODEL, PARAMS, STATE, make, state_of

VARIABLES = Variables(PARAMS, STATE)
KEY = jax.random.key(3)


def logits_fn(x):
    return MODEL.apply(PARAMS, STATE, x, train=False)[0]


def loss_at(x):
    return jnp.sum(losses.cross_entropy(logits_fn(x), LABELS))


class TestNFGSM:
    def test_one_step_from_noise_and_no_projection(self):
        options = {"key": KEY, "eps": 0.05, "box": (0.0, 1.0)}
        noise = n_fgsm(logits_fn, IMAGES, LABELS, step_scale=0.0, **options) - IMAGES
        moved = n_fgsm(logits_fn, IMAGES, LABELS, **options)
        gradient = jax.grad(loss_at)(IMAGES + noise)
        np.testing.assert_allclose(moved, IMAGES + noise + 0.05 * jnp.sign(gradient), atol=1e-6)
        assert 0.05 < float(jnp.abs(noise).max()) <= 0.1
        assert float(jnp.abs(moved - IMAGES).max()) > 0.05

    def test_noise_is_uniform_and_the_box_holds(self):
        images = jnp.full((64, 8, 8, 3), 0.02)
        flat = lambda x: jnp.zeros((len(x), 3)) + jnp.sum(x) * 0  # noqa: E731
        noise = n_fgsm(flat, images, jnp.zeros(64, int), key=KEY, eps=0.05) - images
        above = np.asarray(noise)[np.asarray(noise) > 0]
        np.testing.assert_allclose(np.quantile(above, [0.25, 0.5, 0.75]), [0.025, 0.05, 0.075], atol=0.002)
        np.testing.assert_allclose(float(noise.min()), -0.02, atol=1e-6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"norm": "l2"}, "norm='l2'"), ({"noise_scale": -1.0}, "noise_scale=-1.0"), ({"eps": 8}, "eps=8 must be")],
    )
    def test_what_is_wrong_is_said(self, options, message):
        with pytest.raises(InputError, match=re.escape(message)):
            n_fgsm(logits_fn, IMAGES, LABELS, key=KEY, **options)


class TestGradAlign:
    def test_the_term_is_one_minus_the_cosine(self):
        objective = GradAlign(make(PGDAT), weight=0.3, eps=0.1)
        batch = objective.perturb(VARIABLES, state_of(objective), CLEAN, CONTEXT)
        noise = batch.extra["GradAlign"]
        loss, aux = objective.loss(PARAMS, STATE, state_of(objective), batch, CONTEXT)
        plain, _ = make(PGDAT).loss(PARAMS, STATE, (), batch, CONTEXT)

        def gradient(x):
            def total(x):
                return jnp.sum(losses.cross_entropy(MODEL.apply(PARAMS, STATE, x, train=True)[0], LABELS))

            return np.asarray(jax.grad(total)(x), np.float64).reshape(4, -1)

        g, h = gradient(IMAGES), gradient(IMAGES + noise)
        cosine = (g * h).sum(1) / np.linalg.norm(g, axis=1) / np.linalg.norm(h, axis=1)
        np.testing.assert_allclose(loss - plain, 0.3 * (1 - cosine).mean(), rtol=1e-3)
        np.testing.assert_allclose(aux.metrics["gradients_apart"], (1 - cosine).mean(), rtol=1e-3)
        assert 0.05 < float(jnp.abs(noise).max()) <= 0.1

    def test_without_weight_it_is_the_method_inside(self):
        objective = GradAlign(make(PGDAT), weight=0.0)
        batch = objective.perturb(VARIABLES, state_of(objective), CLEAN, CONTEXT)
        found = jax.grad(lambda p: objective.loss(p, STATE, state_of(objective), batch, CONTEXT)[0])(PARAMS)
        plain = jax.grad(lambda p: make(PGDAT).loss(p, STATE, (), batch, CONTEXT)[0])(PARAMS)
        jax.tree.map(np.testing.assert_allclose, found, plain)

    def test_a_network_without_gradients_is_differentiated(self):
        objective = GradAlign(make(PGDAT))
        params = jax.tree.map(jnp.zeros_like, PARAMS)
        batch = objective.perturb(Variables(params, STATE), state_of(objective), CLEAN, CONTEXT)
        gradient = jax.grad(lambda p: objective.loss(p, STATE, state_of(objective), batch, CONTEXT)[0])(params)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def fresh():
    """Weights of their own: the loop takes the buffers it is given."""
    return jax.tree.map(jnp.array, VARIABLES)


class TestFree:
    def objective(self, **options):
        return FreeAT(model=MODEL, attack=bind(ATTACK, eps=0.1, step_size=0.06), **options)

    def test_weights_and_perturbation_move_at_the_same_point(self):
        objective, optimizer = self.objective(), sgd(0.1, momentum=0.0, weight_decay=0.0)
        state = init_state(objective, optimizer, IMAGES, key=KEY, variables=VARIABLES)
        params, model_state, delta = PARAMS, STATE, np.zeros(IMAGES.shape, np.float32)
        for step in range(3):
            state, metrics = train_step(objective, optimizer, state, CLEAN, key=KEY, epochs=1)

            def mean_loss(params, delta, model_state=model_state):
                logits, after = MODEL.apply(params, model_state, IMAGES + delta, train=True)
                return jnp.mean(losses.cross_entropy(logits, LABELS)), after

            (value, model_state), (g, uphill) = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)(
                params, delta
            )
            params = jax.tree.map(lambda w, g: w - 0.1 * g, params, g)
            delta = np.clip(delta + 0.06 * np.sign(uphill), -0.1, 0.1)
            delta = np.clip(np.asarray(IMAGES) + delta, 0, 1) - IMAGES
            np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
            np.testing.assert_allclose(state.objective_state, delta, atol=1e-6)
            assert step or abs(np.abs(delta).max() - 0.06) < 1e-6
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), state.params, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), state.model_state, model_state)

    def test_each_batch_is_taken_so_often_in_a_row(self):
        order = np.asarray(epoch_order(KEY, 22, 4, replays=3)).reshape(5, 4)
        plain = np.asarray(epoch_order(KEY, 22, 4))[:20].reshape(5, 4)
        np.testing.assert_array_equal(order, plain[[0, 0, 0, 1, 1]])

    def test_the_loop_replays_from_device_and_stream(self):
        images = np.asarray(np.random.default_rng(0).integers(0, 256, (16, 1, 2, 1)), np.uint8)
        labels = np.arange(16, dtype=np.int32) % 3
        objective, recipe = self.objective(replays=2), Recipe(sgd(0.01), batch_size=4)
        states = []
        for examples in (Examples(images, labels), None):
            source = examples or Stream(Split(images, labels), batch_size=4, replays=2)
            state = init_state(objective, recipe.optimizer, jnp.zeros((4, 1, 2, 1)), key=KEY, variables=fresh())
            options = {"key": KEY, "recipe": recipe, "epochs": 1, "steps_per_chunk": 3}
            states.append(run_epoch(state, objective, source, **options)[0])
        jax.tree.map(np.testing.assert_array_equal, *map(jax.tree.leaves, states))
        once = dataclasses.replace(objective, replays=1)
        state = init_state(once, recipe.optimizer, jnp.zeros((4, 1, 2, 1)), key=KEY, variables=fresh())
        other, _ = run_epoch(state, once, Examples(images, labels), **options)
        assert not np.array_equal(other.params["w"], states[0].params["w"])

    def test_what_is_wrong_is_said(self):
        with pytest.raises(InputError, match="replays=0 must be at least 1"):
            self.objective(replays=0)
        with pytest.raises(InputError, match="Free-AT's perturbations belong to positions"):
            check_parts(self.objective(), 4, 2)
        with pytest.raises(InputError, match="FreeAT needs its attack's step_size"):
            FreeAT(model=MODEL, attack=bind(n_fgsm, eps=0.1))
        state = jnp.zeros((1, *IMAGES.shape[1:]))
        with pytest.raises(InputError, match="give init_state as many images as a step has"):
            self.objective().perturb(VARIABLES, state, Batch(IMAGES, LABELS, jnp.arange(4)), CONTEXT)
