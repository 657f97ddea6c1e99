"""Several sets of generated examples beside the training set: what a batch holds of each, and what is told of it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.labels import smoothed
from piat_jax.core.rng import named_key
from piat_jax.data import Split
from piat_jax.data.batching import epoch_order
from piat_jax.objectives import Consistency
from piat_jax.training import epoch, fit, run_epoch, train_steps
from piat_jax.training.schedules import piecewise_linear
from piat_jax.training.streaming import Stream

SHARES = (2, 3)


@pytest.fixture(scope="module")
def sources():
    rng = np.random.default_rng(1)
    return tuple(
        (rng.integers(0, 256, (count, 8, 8, 1), np.uint8), rng.integers(0, 3, count).astype(np.int32))
        for count in (11, 4)
    )


@pytest.fixture
def several(problem, sources):
    extra = tuple(tuple(map(jnp.asarray, pair)) for pair in sources)
    recipe = problem.recipe._replace(extra_per_batch=SHARES)
    return problem._replace(examples=problem.examples._replace(extra=extra), recipe=recipe)


def on_host(problem, sources, **options):
    own = Split(*(np.asarray(part) for part in problem.examples[:2]))
    return Stream(own, batch_size=8, extra=[Split(*pair) for pair in sources], extra_per_batch=SHARES, **options)


def order_of(problem, steps=0):
    shuffled = jax.random.fold_in(named_key(problem.key, "shuffle"), 0)
    return epoch_order(shuffled, 26, 8, (11, 4), SHARES, epoch_steps=steps)


def batches_of(problem, monkeypatch, **changes):
    """The batches of an epoch as the step is given them, and how many classes they are told of, from the real loop."""

    def record(objective, optimizer, state, batch, **options):
        seen = {f"batch_{name}": value for name, value in batch._asdict().items() if value is not None}
        return dataclasses.replace(state, step=state.step + 1), {"loss": jnp.float32(0), **seen}

    monkeypatch.setattr(epoch, "train_step", record)
    jitted = jax.jit(train_steps.program, **train_steps.options)
    objective = jax.tree.map(jnp.asarray, changes.pop("objective", problem.objective))
    recipe = problem.recipe._replace(**changes)
    steps = recipe.steps(26)
    numbers = jnp.int32(0), jnp.int32(steps), jnp.int32(9)
    _, chunk = jitted(problem.state(), objective, problem.examples, problem.key, *numbers, recipe=recipe)
    return {name: np.asarray(chunk.metrics[name]) for name in chunk.metrics if name.startswith("batch_")}


def test_a_batch_has_of_each_set_its_share_and_indices_count_on(several, sources):
    everything = [np.concatenate([np.asarray(own), *others]) for own, *others in zip(several.examples, *sources)]
    order = order_of(several)
    for number in range(3):
        images, labels, indices = several.examples.take(order, jnp.int32(number), 8, SHARES)
        np.testing.assert_array_equal(images, everything[0][np.asarray(indices)])
        np.testing.assert_array_equal(labels, everything[1][np.asarray(indices)])
        np.testing.assert_array_equal(indices, order[8 * number : 8 * number + 8])
        assert [int(((indices >= low) & (indices < high)).sum()) for low, high in ((0, 26), (26, 37), (37, 41))] == [
            3,
            2,
            3,
        ]
    assert (several.examples.extra_counts, several.examples.extra_count) == ((11, 4), 15)


@pytest.mark.parametrize("steps", [0, 2, 7])
@pytest.mark.parametrize("batches", [1, 2, 9])
def test_windows_hold_what_the_device_would_take(several, sources, batches, steps):
    stream = on_host(several, sources, window_bytes=batches * 512, epoch_steps=steps)
    total = steps or 3
    assert (stream.steps, stream.length, stream.extra_count) == (total, min(batches, total), 15)
    order = order_of(several, steps)
    for number in range(total):
        window, end = stream.window(several.key, 0, number)
        assert end == min((number // batches + 1) * batches, total)
        theirs = several.examples.take(order, jnp.int32(number), 8, SHARES)
        jax.tree.map(np.testing.assert_array_equal, window.take(order, jnp.int32(number), 8, SHARES), theirs)


def test_streamed_epochs_equal_those_on_the_device(several, sources):
    recipe = several.recipe._replace(epoch_steps=4, extra_smoothing=(0.1, 0.4))
    options = {"key": several.key, "recipe": recipe, "epochs": 9, "steps_per_chunk": 3}
    ours, metrics = run_epoch(several.state(), several.objective, several.examples, **options)
    stream = on_host(several, sources, window_bytes=1024, epoch_steps=4)
    theirs, expected = run_epoch(several.state(), several.objective, stream, **options)
    assert metrics == expected
    assert int(ours.step) == 4
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch_steps": 4}, "epoch_steps=4 in the recipe differs from 0 in the stream; give both the same"),
        ({"extra_per_batch": (3, 2)}, r"extra_per_batch=\(3, 2\) in the recipe differs from \(2, 3\) in the stream"),
        ({"batch_size": 13}, "batch_size=13 in the recipe differs from 8 in the stream"),
    ],
)
def test_a_stream_of_other_batches_than_the_recipes_is_refused(several, sources, changes, message):
    recipe = several.recipe._replace(**changes)
    with pytest.raises(InputError, match=message):
        run_epoch(
            several.state(),
            several.objective,
            on_host(several, sources),
            key=several.key,
            recipe=recipe,
            epochs=1,
            steps_per_chunk=9,
        )


@pytest.mark.parametrize("over", ["others", "all"])
@pytest.mark.parametrize("smoothing", [(0.3,), (0.0, 0.3), (0.6, 0.0)])
def test_targets_of_generated_examples_are_smoothed_and_no_others(several, monkeypatch, smoothing, over):
    seen = batches_of(several, monkeypatch, extra_smoothing=smoothing, smoothing_over=over)
    first, second = smoothing * 2 if len(smoothing) == 1 else smoothing
    labels, targets = seen["batch_labels"], seen["batch_targets"]
    assert targets.shape == (3, 8, 3)
    for columns, share in ((slice(0, 3), 0.0), (slice(3, 5), first), (slice(5, 8), second)):
        # Over all, the label keeps 1 - s + s / K; over the others 1 - s, and each of these has s / (K - 1).
        kept, others = (1 - share + share / 3, share / 3) if over == "all" else (1 - share, share / 2)
        expected = np.where(np.arange(3) == labels[:, columns, None], kept, others)
        np.testing.assert_allclose(targets[:, columns], expected, atol=1e-7)
    np.testing.assert_array_equal(targets[:, :3], np.eye(3)[labels[:, :3]])  # to the bit


def test_every_view_of_an_example_has_its_target(several, monkeypatch):
    objective = Consistency(several.objective)
    seen = batches_of(several, monkeypatch, extra_smoothing=(0.0, 0.3), objective=objective)
    assert seen["batch_targets"].shape == (3, 16, 3)
    np.testing.assert_array_equal(seen["batch_targets"][:, :8], seen["batch_targets"][:, 8:])
    assert (np.asarray(seen["batch_targets"]).max(axis=-1) < 1).sum(axis=1).tolist() == [6, 6, 6]


def test_of_one_set_the_share_is_that_of_its_examples(problem, sources, monkeypatch):
    examples = problem.examples._replace(extra=tuple(map(jnp.asarray, sources[0])))
    one = problem._replace(examples=examples)
    targets = batches_of(one, monkeypatch, extra_per_batch=5, extra_smoothing=(0.3,))["batch_targets"]
    assert (targets.max(axis=-1) < 1).tolist() == [[False] * 3 + [True] * 5] * 3


def test_without_smoothing_the_program_is_what_it_was(several, monkeypatch):
    def text(**changes):
        recipe = several.recipe._replace(**changes)
        jitted = jax.jit(train_steps.program, **train_steps.options)
        objective = jax.tree.map(jnp.asarray, several.objective)
        numbers = [jnp.int32(0)] * 3
        lowered = jitted.lower(several.state(), objective, several.examples, several.key, *numbers, recipe=recipe)
        return re.sub(r"@(\w+?)_\d+\b", r"@\1", lowered.as_text())

    before = text()
    assert text(extra_smoothing=(0.0, 0.0), smoothing_over="all") == before
    assert text(extra_smoothing=(0.0, 0.1)) != before
    assert "batch_targets" not in batches_of(several, monkeypatch, extra_smoothing=(0.0,))


def test_the_loss_is_that_of_the_smoothed_targets(several):
    """A step on labels that are smoothed for all of a set equals one whose step is given these targets."""
    recipe = several.recipe._replace(extra_smoothing=(0.5, 0.2), epoch_steps=1)
    options = {"key": several.key, "epochs": 9, "steps_per_chunk": 9}
    state, metrics = run_epoch(several.state(), several.objective, several.examples, recipe=recipe, **options)
    with pytest.MonkeyPatch.context() as patch:
        step = epoch.train_step

        def told(objective, optimizer, state, batch, **options):
            shares = jnp.asarray([0, 0, 0, 0.5, 0.5, 0.2, 0.2, 0.2])[:, None]
            return step(
                objective, optimizer, state, batch._replace(targets=smoothed(batch.labels, 3, shares)), **options
            )

        patch.setattr(epoch, "train_step", told)
        plain = several.recipe._replace(epoch_steps=1, padding_mode="zeros", skip_nonfinite=True)
        theirs, expected = run_epoch(several.state(), several.objective, several.examples, recipe=plain, **options)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.params, theirs.params)


@pytest.mark.parametrize("steps", [2, 5])
def test_a_run_counts_epochs_of_so_many_steps(problem, steps):
    told, interpolated = [], []
    recipe = problem.recipe._replace(epoch_steps=steps)
    state = fit(
        problem.state(),
        problem.objective,
        problem.examples,
        key=problem.key,
        recipe=recipe,
        epochs=2,
        epoch_end=[lambda state, epoch: interpolated.append((int(epoch), int(state.step))) or state],
        evaluate=lambda state, epoch: told.append((epoch, int(state.step))) or {},
        on_chunk=lambda epoch, done, total: told.append((epoch, done, total)),
        steps_per_chunk=50,
    )
    assert int(state.step) == 2 * steps
    assert interpolated == [(1, steps), (2, 2 * steps)]
    assert [each for each in told if len(each) == 2] == interpolated
    assert {each[2] for each in told if len(each) == 3} == {steps}
    # A schedule in epochs moves with them.
    rate = piecewise_linear((0, 1, 2), (1.0, 1.0, 0.5), steps_per_epoch=recipe.steps(26))
    assert [float(rate(step)) for step in (steps - 1, steps)] == [1.0, 0.5]


def test_sets_are_checked_one_by_one(several, sources):
    options = {"key": several.key, "recipe": several.recipe, "epochs": 1, "steps_per_chunk": 9}
    for bad, message in (
        ((sources[1][0], sources[1][1] + 3), r"examples.extra\[1\] has label"),
        ((sources[1][0][:, :4], sources[1][1]), r"examples.extra\[1\] images are \(4, 8, 1\), the others \(8, 8, 1\)"),
    ):
        examples = several.examples._replace(extra=(sources[0], bad))
        with pytest.raises(InputError, match=message):
            run_epoch(several.state(), several.objective, examples, **options)
    # Of NumPy they are moved, and train as those on the device do.
    ours, _ = run_epoch(several.state(), several.objective, several.examples._replace(extra=sources), **options)
    theirs, _ = run_epoch(several.state(), several.objective, several.examples, **options)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
