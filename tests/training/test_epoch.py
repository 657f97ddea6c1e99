import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax.core.pixels import to_float
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.types import AdversarialBatch, Aux, Batch, Variables
from piat_jax.data.augment import augment
from piat_jax.data.batching import epoch_permutation
from piat_jax.training import Examples, Recipe, TrainingDivergedError, epoch, run_epoch, sgd, train_step, train_steps

SPE = 3  # 26 images in batches of 8


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def run(problem, state, chunk=100, **changes):
    arguments = {"key": problem.key, "recipe": problem.recipe, "epochs": 9, "steps_per_chunk": chunk, **changes}
    return run_epoch(state, problem.objective, problem.examples, **arguments)


def test_an_epoch_equals_its_steps_one_by_one(problem):
    final, metrics = run(problem, problem.state())
    state, losses = problem.state(), []
    order = epoch_permutation(jax.random.fold_in(named_key(problem.key, "shuffle"), 0), 26)
    step = jax.jit(
        lambda state, batch: train_step(
            problem.objective, problem.recipe.optimizer, state, batch, key=problem.key, epochs=9
        )
    )
    for number in range(SPE):
        indices = order[8 * number : 8 * number + 8]
        keys = example_keys(jax.random.fold_in(named_key(problem.key, "augment"), 0), indices)
        images = augment(problem.examples.images[indices], keys, crop_padding=1, padding_mode="zeros", flip=True)
        state, one = step(state, Batch(to_float(images), problem.examples.labels[indices], indices))
        losses.append(float(one["loss"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), final.params, state.params)
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert int(final.step) == SPE
    assert int(final.epoch) == 0  # counted by `fit`, after its hooks


def test_a_step_augments_as_the_recipe_says(problem, monkeypatch):
    class Told(Exception):
        pass

    def stop(images, keys, **options):
        raise Told(options)

    monkeypatch.setattr("piat_jax.training.epoch.augment", stop)
    wanted = {"crop_padding": 3, "padding_mode": "reflect", "flip": False, "policy": "randaugment", "cutout": 5}
    wanted |= {"policy_operations": 3, "policy_magnitude": 7, "erasing": 0.5}
    with pytest.raises(Told) as told:
        run(problem, problem.state(), recipe=problem.recipe._replace(**wanted))
    assert told.value.args[0] == wanted


def test_each_step_is_told_how_many_an_epoch_has(problem, monkeypatch):
    class Told(Exception):
        pass

    def stop(*arguments, steps_per_epoch, **options):
        raise Told(steps_per_epoch)

    monkeypatch.setattr("piat_jax.training.epoch.train_step", stop)
    with pytest.raises(Told, match="5"):  # 26 images in batches of 5
        run(problem, problem.state(), recipe=problem.recipe._replace(batch_size=5))


def test_nothing_is_transferred_where_a_chunk_begins(problem, monkeypatch):
    steps, calls = epoch.train_steps, []

    def guarded(*arguments, **keywords):
        calls.append(arguments)
        # Compiling may ask a GPU for a constant of the user's optimizer.
        with jax.transfer_guard("allow" if len(calls) == 1 else "disallow"):
            return steps(*arguments, **keywords)

    monkeypatch.setattr(epoch, "train_steps", guarded)
    run(problem, problem.state(), 1)
    assert len(calls) == SPE


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_do_not_change_anything(problem, chunk):
    whole, metrics = run(problem, problem.state())
    seen = []
    parts, part_metrics = run(problem, problem.state(), chunk, on_chunk=lambda done, total: seen.append((done, total)))
    same(whole, parts)
    assert part_metrics == metrics
    assert seen == [(min(done, SPE), SPE) for done in range(chunk, SPE + chunk, chunk)]


def test_chunks_are_short_where_steps_take_long(problem):
    seen = []
    run(problem, problem.state(), 3, seconds_per_chunk=1e-6, on_chunk=lambda done, total: seen.append(done))
    assert seen == [1, 2, 3]
    seen.clear()
    run(problem, problem.state(), 3, seconds_per_chunk=3600.0, on_chunk=lambda done, total: seen.append(done))
    assert seen == [1, 3]


def test_later_epochs_and_other_chunks_compile_nothing(problem):
    state, _ = run(problem, problem.state(), 2)
    compiled = train_steps._cache_size()
    state = dataclasses.replace(state, epoch=jnp.int32(1))
    run(problem, state, 1)
    assert train_steps._cache_size() == compiled


def test_epochs_differ_and_keys_differ(problem):
    first, _ = run(problem, problem.state())
    later, _ = run(problem, dataclasses.replace(problem.state(), epoch=jnp.int32(1)))
    other, _ = run(problem, problem.state(), key=jax.random.key(4))
    for state in (later, other):
        assert not np.array_equal(first.params["linear"]["dense"]["bias"], state.params["linear"]["dense"]["bias"])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Looking:
    """An objective that keeps the first batch it sees."""

    views = 2

    def perturb(self, variables, objective_state, batch, context):
        return AdversarialBatch(batch, batch.images)

    def perturb_weights(self, params, *_):
        return params

    def loss(self, params, model_state, objective_state, batch, context):
        seen = {name: value for name, value in batch.clean._asdict().items() if value is not None}
        return jnp.sum(params["w"] ** 2), Aux(seen, {"loss": jnp.float32(context.epochs)})

    def after_step(self, variables, objective_state, batch, aux, context):
        return {"steps": objective_state["steps"] + 1, "step": context.step}


def test_two_views_are_augmented_each_on_its_own(problem):
    state, batch = counting_state(problem), {"images": jnp.zeros((16, 8, 8, 1)), "labels": jnp.zeros(16, jnp.int32)}
    state = dataclasses.replace(
        state,
        model_state={**batch, "indices": jnp.zeros(16, jnp.int32)},
        objective_state={"steps": jnp.int32(0), "step": jnp.int32(0)},
    )
    recipe = problem.recipe._replace(step_end=(_add_100,))
    state, metrics = run_epoch(
        state, Looking(), problem.examples, key=problem.key, recipe=recipe, epochs=7, steps_per_chunk=9
    )
    seen = {name: np.asarray(value) for name, value in state.model_state.items()}
    np.testing.assert_array_equal(seen["labels"][:8], seen["labels"][8:])
    # An index of its own for each view, so that everything random differs.
    np.testing.assert_array_equal(seen["indices"][:8] + 26, seen["indices"][8:])
    for half in (slice(0, 8), slice(8, 16)):
        keys = example_keys(jax.random.fold_in(named_key(problem.key, "augment"), 0), seen["indices"][half])
        images = problem.examples.images[seen["indices"][half] % 26]
        expected = to_float(augment(images, keys, crop_padding=1, padding_mode="zeros", flip=True))
        np.testing.assert_array_equal(seen["images"][half], expected)
    assert np.any(seen["images"][:8] != seen["images"][8:])
    # The state of the method follows each step, and so does what ends a step.
    assert (int(state.objective_state["steps"]), int(state.objective_state["step"])) == (SPE, SPE - 1)
    assert float(state.params["w"][0]) > 50
    assert metrics["loss"] == 7


def _add_100(state):
    return dataclasses.replace(state, params=jax.tree.map(lambda w: w + 100.0, state.params))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Counting:
    """An objective that sees every example once an epoch: its metric sums powers of two of their indices."""

    views = 1
    blow_up_at: int = -1
    infinite: float = np.nan  # added to the loss there, and to the term "odd"

    def perturb_weights(self, params, *_):
        return params

    def after_step(self, variables, objective_state, *_):
        return objective_state

    def perturb(self, variables, objective_state, batch, context):
        return AdversarialBatch(batch, batch.images, extra={"epoch": context.epoch})

    def loss(self, params, model_state, objective_state, batch, context):
        seen = model_state["seen"].at[batch.clean.indices].add(1)
        bad = context.step == self.blow_up_at
        odd = jnp.where(bad, self.infinite, 0.0)
        # The root is finite at zero, its gradient is not.
        loss = jnp.sum(params["w"] ** 2) + context.epoch + odd + jnp.sqrt(jnp.where(bad, 0.0, 1.0) * params["w"][0])
        return loss, Aux({"seen": seen, "steps": model_state["steps"] + 1}, {"loss": loss, "odd": odd})


def counting_state(problem):
    state = problem.state()
    params = {"w": jnp.ones(2)}
    return dataclasses.replace(
        state,
        params=params,
        model_state={"seen": jnp.zeros(26, jnp.int32), "steps": jnp.int32(0)},
        opt_state=problem.recipe.optimizer.init(params),
        anchor=Variables({}, {}),
    )


def test_every_example_comes_at_most_once_an_epoch_and_the_rest_is_dropped(problem):
    state = counting_state(problem)
    state, _ = run_epoch(
        state, Counting(), problem.examples, key=problem.key, recipe=problem.recipe, epochs=9, steps_per_chunk=2
    )
    seen = np.asarray(state.model_state["seen"])
    assert seen.sum() == 24
    assert seen.max() == 1


def run_counting(problem, objective, chunk=100, **changes):
    arguments = {"key": problem.key, "recipe": problem.recipe, "epochs": 9, "steps_per_chunk": chunk, **changes}
    return run_epoch(counting_state(problem), objective, problem.examples, **arguments)


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_loss_that_is_not_finite_stops_before_its_step_and_says_where(problem, chunk):
    with pytest.raises(TrainingDivergedError) as caught:
        run_counting(problem, Counting(blow_up_at=1), chunk)
    order = epoch_permutation(jax.random.fold_in(named_key(problem.key, "shuffle"), 0), 26)
    images = [int(index) for index in order[8:16]]
    assert str(caught.value) == (
        "the loss became nan with odd nan at step 2 (epoch 1, step 2 of 3, images "
        f"{', '.join(map(str, images))}); lower the learning rate"
    )
    assert caught.value.report["images"] == images
    assert (int(caught.value.state.step), caught.value.position.steps) == (1, 1)
    assert caught.value.position.metrics["odd"] == 0
    assert int(caught.value.state.model_state["steps"]) == 1
    assert np.isfinite(caught.value.state.params["w"]).all()


def test_a_gradient_that_is_not_finite_stops_too(problem):
    with pytest.raises(
        TrainingDivergedError,
        match=r"the gradient or the new state was not finite at a loss of .* step 3 of 3",
    ):
        run_counting(problem, Counting(blow_up_at=2, infinite=0.0))


@pytest.mark.parametrize("infinite", [np.nan, 0.0])
def test_such_a_step_can_be_left_out_and_is_counted(problem, infinite):
    recipe = problem.recipe._replace(skip_nonfinite=True, optimizer=sgd(optax.constant_schedule(0.1)))
    problem = problem._replace(recipe=recipe)
    state, metrics = run_counting(problem, Counting(blow_up_at=1, infinite=infinite))
    assert metrics.pop("skipped_steps") == 1
    assert all(np.isfinite(value) for value in metrics.values())
    # Two steps shaped the state, and three are counted: schedules and random numbers move on.
    assert (int(state.model_state["steps"]), int(state.step)) == (2, 3)
    assert np.asarray(state.model_state["seen"]).sum() == 16
    momentum = np.asarray(jax.tree.leaves(state.opt_state)[0])
    assert np.isfinite(momentum).all()
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert [int(count) for count in counts] == [3]


def test_a_learning_rate_that_is_too_high_diverges(problem):
    recipe = Recipe(sgd(1e30), batch_size=8)
    with pytest.raises(TrainingDivergedError, match="lower the learning rate"):
        run(problem, problem.state(), recipe=recipe)


def test_the_state_is_donated(problem):
    state = problem.state()
    run(problem, state)
    assert state.params["linear"]["dense"]["bias"].is_deleted()


def test_the_data_stays_uint8_on_the_device(problem):
    floats = Examples(problem.examples.images / 255, problem.examples.labels)
    with pytest.raises(ValueError, match="uint8"):
        run_epoch(
            problem.state(),
            problem.objective,
            floats,
            key=problem.key,
            recipe=problem.recipe,
            epochs=9,
            steps_per_chunk=9,
        )


def test_a_step_is_traced_once(problem, monkeypatch):
    traced = []
    monkeypatch.setattr(epoch, "train_step", lambda *args, **options: traced.append(1) or train_step(*args, **options))
    # Of no other test, and so compiled anew.
    run(problem, problem.state(), recipe=problem.recipe._replace(padding_mode="reflect"))
    assert len(traced) == 1
