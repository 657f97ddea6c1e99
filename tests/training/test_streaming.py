import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.rng import named_key
from piat_jax.core.sharding import data_mesh
from piat_jax.data import Split
from piat_jax.data.batching import epoch_order
from piat_jax.training import StopTraining, run_epoch
from piat_jax.training.streaming import Stream, check_extra

BATCH = 8 * 8 * 8  # bytes of a batch of the problem's images


def run(problem, examples, state=None, **changes):
    options = {"key": problem.key, "recipe": problem.recipe, "epochs": 9, "steps_per_chunk": 2, **changes}
    return run_epoch(state or problem.state(), problem.objective, examples, **options)


def on_host(examples):
    return Split(*(np.asarray(part) for part in examples[:2]))


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def extra():
    rng = np.random.default_rng(1)
    return Split(rng.integers(0, 256, (11, 8, 8, 1), np.uint8), rng.integers(0, 3, 11).astype(np.int32))


def test_streamed_epochs_equal_those_on_the_device(problem):
    stream = Stream(on_host(problem.examples), batch_size=8, window_bytes=2 * BATCH)
    ours, theirs = problem.state(), problem.state()
    for epoch in range(2):
        ours, theirs = (dataclasses.replace(state, epoch=jnp.int32(epoch)) for state in (ours, theirs))
        ours, metrics = run(problem, stream, ours)
        theirs, expected = run(problem, problem.examples, theirs)
        assert metrics == expected
        same(ours.params, theirs.params)


@pytest.mark.parametrize("batches", [1, 2, 9])
@pytest.mark.parametrize("share", [0, 5])
def test_windows_hold_what_the_device_would_take(problem, extra, batches, share):
    options = {"extra": extra, "extra_per_batch": share} if share else {}
    stream = Stream(on_host(problem.examples), batch_size=8, window_bytes=batches * BATCH, **options)
    assert stream.length == min(batches, 3)
    examples = problem.examples._replace(extra=tuple(map(jnp.asarray, extra)) if share else None)
    shuffled = jax.random.fold_in(named_key(problem.key, "shuffle"), 4)
    order = epoch_order(shuffled, 26, 8, 11 if share else 0, share)
    for number in range(3):
        window, end = stream.window(problem.key, 4, number)
        assert end == min((number // batches + 1) * batches, 3)
        theirs = examples.take(order, jnp.int32(number), 8, share)
        same(window.take(order, jnp.int32(number), 8, share), theirs)


def test_each_batch_holds_its_share_of_generated_examples(problem, extra):
    key, count = jax.random.key(5), 26
    examples = problem.examples._replace(extra=tuple(map(jnp.asarray, extra)))
    order = np.asarray(epoch_order(key, count, 8, 11, 5))
    batches = order.reshape(3, 8)
    own, generated = batches[:, :3], batches[:, 3:] - count
    assert len(set(own.ravel())) == own.size
    assert own.max() < count
    assert (generated >= 0).all()
    assert sorted(np.bincount(generated.ravel(), minlength=11)) == [1] * 7 + [2] * 4  # 15 places: all, then again
    images, labels, indices = examples.take(jnp.asarray(order), jnp.int32(1), 8, 5)
    np.testing.assert_array_equal(indices, batches[1])
    both = [np.concatenate([np.asarray(mine), other]) for mine, other in zip(problem.examples, extra)]
    np.testing.assert_array_equal(images, both[0][batches[1]])
    np.testing.assert_array_equal(labels, both[1][batches[1]])


def test_a_window_is_sent_while_the_one_before_is_worked_on(problem):
    stream = Stream(on_host(problem.examples), batch_size=8, window_bytes=BATCH)
    window, end = stream.window(problem.key, 0, 0)
    assert (int(window.first), end) == (0, 1)
    made = []
    make = stream._make
    stream._make = lambda order, number, epoch: made.append(number) or make(order, number, epoch)
    for epoch, step, then in ((0, 1, [2]), (0, 2, [2, 0]), (1, 0, [2, 0, 1]), (1, 0, [2, 0, 1])):
        assert int(stream.window(problem.key, epoch, step)[0].first) == step
        stream._thread.submit(int).result()  # what was asked for before is done
        assert made == then
    assert len(stream._windows) == 2  # the one that is worked on and the next; no more are on the device


def test_going_on_in_the_middle_of_an_epoch_is_the_same(problem):
    stream = Stream(on_host(problem.examples), batch_size=8, window_bytes=2 * BATCH)
    whole, _ = run(problem, stream)
    with pytest.raises(StopTraining) as stopped:
        run(problem, stream, steps_per_chunk=1, should_stop=lambda: True)
    assert stopped.value.position.steps == 1
    fresh = Stream(on_host(problem.examples), batch_size=8, window_bytes=2 * BATCH)
    rest, _ = run(problem, fresh, stopped.value.state, position=stopped.value.position)
    same(rest.params, whole.params)


def test_devices_get_their_share_of_each_batch(problem):
    mesh = data_mesh(8, jax.devices()[:2])
    stream = Stream(on_host(problem.examples), batch_size=8, mesh=mesh)
    window, _ = stream.window(problem.key, 0, 0)
    assert {shard.data.shape for shard in window.images.addressable_shards} == {(3, 4, 8, 8, 1)}
    single, _ = Stream(on_host(problem.examples), batch_size=8).window(problem.key, 0, 0)
    np.testing.assert_array_equal(window.images, single.images)


def test_what_does_not_go_together_is_named(problem, extra):
    images = problem.examples.images
    for count in (0, 8):
        with pytest.raises(
            InputError, match=f"{count} of batch_size=8 would be extra examples; give an extra_fraction"
        ):
            check_extra(images, extra, 8, count)
    with pytest.raises(InputError, match="batch_size=27 is more than the 26 examples"):
        Stream(on_host(problem.examples), batch_size=27)
