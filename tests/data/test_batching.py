import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.rng import named_key
from piat_jax.data import batching
from piat_jax.data.batching import (
    check_batch_size,
    epoch_order,
    epoch_permutation,
    share_out,
    steps_per_epoch,
    take_batch,
)

IMAGES = jnp.arange(11 * 2 * 2, dtype=jnp.uint8).reshape(11, 2, 2, 1)
LABELS = jnp.arange(11, dtype=jnp.int32) * 3


def test_a_permutation_has_every_example_once_and_follows_its_key():
    order = epoch_permutation(jax.random.key(0), 1000)
    assert order.dtype == jnp.int32
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() == epoch_permutation(jax.random.key(0), 1000).tolist()
    other = epoch_permutation(jax.random.key(1), 1000)
    assert (order == jnp.arange(1000)).mean() < 0.02
    assert (order == other).mean() < 0.02


def test_batches_of_an_epoch_are_disjoint_in_order_and_leave_out_the_rest():
    order = epoch_permutation(jax.random.key(0), 11)
    batches = [take_batch(IMAGES, LABELS, order, step, 4) for step in range(steps_per_epoch(11, 4))]
    assert len(batches) == 2
    indices = np.concatenate([batch[2] for batch in batches])
    np.testing.assert_array_equal(indices, np.asarray(order[:8]))
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in batches]), np.asarray(IMAGES)[indices])
    np.testing.assert_array_equal(np.concatenate([batch[1] for batch in batches]), 3 * indices)
    assert batches[0][0].dtype == jnp.uint8
    assert batches[0][2].dtype == jnp.int32


def test_a_traced_step_in_a_compiled_loop_gives_the_same_batches():
    order = epoch_permutation(jax.random.key(3), 11)

    @jax.jit
    def epoch(images, labels, order):
        return jax.lax.map(lambda step: take_batch(images, labels, order, step, 5), jnp.arange(2))

    looped = epoch(IMAGES, LABELS, order)
    for step in range(2):
        for ours, theirs in zip(looped, take_batch(IMAGES, LABELS, order, step, 5)):
            np.testing.assert_array_equal(ours[step], theirs, strict=True)


def test_an_order_of_some_examples_indexes_the_whole_data_set():
    images, labels, indices = take_batch(IMAGES, LABELS, jnp.array([10, 8, 6], jnp.int32), 0, 2)
    assert indices.tolist() == [10, 8]
    assert labels.tolist() == [30, 24]
    np.testing.assert_array_equal(images, IMAGES[jnp.array([10, 8])])


@pytest.mark.parametrize("step", [-1, 2])
def test_a_concrete_step_beyond_the_epoch_is_refused(step):
    with pytest.raises(InputError, match=rf"step={step} must be in \[0, 2\)"):
        take_batch(IMAGES, LABELS, jnp.arange(11, dtype=jnp.int32), step, 5)


def test_batch_sizes_are_checked():
    check_batch_size(11, 11)
    with pytest.raises(InputError, match="batch_size=12 is more than the 11 examples; give at most 11"):
        check_batch_size(12, 11)
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        steps_per_epoch(11, 0)
    with pytest.raises(InputError, match="batch_size=12 is more than the 11 examples"):
        take_batch(IMAGES, LABELS, jnp.arange(11, dtype=jnp.int32), 0, 12)


KEY = jax.random.key(4)


def test_one_generated_set_is_drawn_as_ever():
    order = epoch_order(KEY, 26, 8, 11, 5)
    generated = 26 + epoch_permutation(named_key(KEY, "extra"), 11)[jnp.arange(15) % 11].reshape(3, 5)
    own = epoch_permutation(KEY, 26)[:9].reshape(3, 3)
    np.testing.assert_array_equal(order.reshape(3, 8), np.concatenate([own, generated], axis=1))
    np.testing.assert_array_equal(epoch_order(KEY, 26, 8, (11,), (5,)), order)
    np.testing.assert_array_equal(epoch_order(KEY, 26, 8), epoch_permutation(KEY, 26))


@pytest.mark.parametrize("large", [batching.LARGE, 3])
def test_each_of_several_sets_has_its_share_of_each_batch(large, monkeypatch):
    monkeypatch.setattr(batching, "LARGE", large)
    sizes, shares = (7, 4, 7), (3, 2, 3)
    batches = np.asarray(epoch_order(KEY, 40, 10, sizes, shares)).reshape(4, 10)
    parts = np.split(batches, [2, 5, 7], axis=1)
    for part, size, start in zip(parts, (40, *sizes), (0, 40, 47, 51)):
        assert start <= part.min() <= part.max() < start + size
        times = np.bincount(part.ravel() - start, minlength=size)
        assert times.max() - times.min() <= 1  # none a second time before all were seen
    assert (parts[1] - 40 != parts[3] - 51).any()  # of equal sets each has an order of its own


def test_of_many_millions_no_permutation_is_made(monkeypatch):
    made = []
    permute = batching.epoch_permutation
    monkeypatch.setattr(batching, "epoch_permutation", lambda key, size: made.append(size) or permute(key, size))
    order = np.asarray(epoch_order(KEY, 26, 8, (50_000_000, batching.LARGE + 1, 100), (2, 2, 2)))
    assert made == [26, 100]
    generated = order.reshape(3, 8)[:, 2:]
    assert len(set(generated.ravel())) == generated.size
    for columns, start, size in ((slice(0, 2), 26, 50_000_000), (slice(2, 4), 50_000_026, batching.LARGE + 1)):
        part = generated[:, columns] - start
        assert 0 <= part.min() < part.max() < size
        assert part.max() > size // 10


def test_what_has_no_share_of_its_own_is_named():
    with pytest.raises(
        InputError, match=r"extra_per_batch=\(2, 3\) for 1 sets of generated examples; give one for each"
    ):
        epoch_order(KEY, 26, 8, 11, (2, 3))


@pytest.mark.parametrize("extra", [(), (11, 5)])
def test_an_epoch_of_fewer_steps_is_the_beginning_of_a_whole_one(extra):
    whole = epoch_order(KEY, 26, 8, *extra)
    for steps in (1, 2, 3):
        order = epoch_order(KEY, 26, 8, *extra, epoch_steps=steps)
        assert len(order) == 8 * steps == 8 * steps_per_epoch(26, 8, steps)
        np.testing.assert_array_equal(order, whole[: 8 * steps])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("extra", [(), (11, 5)])
def test_a_longer_epoch_goes_through_the_examples_again_in_other_orders(impl, extra):
    key = jax.random.key(4, impl=impl)
    order = epoch_order(key, 26, 8, *extra, epoch_steps=40)
    assert len(order) == 320
    own = np.asarray(order).reshape(40, 8)[:, : 3 if extra else 8].ravel()
    passes = [own[start : start + 26] for start in range(0, len(own) - 25, 26)]
    assert len(passes) == (4 if extra else 12)
    assert all(sorted(each) == list(range(26)) for each in passes)
    np.testing.assert_array_equal(passes[0], epoch_permutation(key, 26))
    assert len({tuple(each) for each in passes}) == len(passes)


def test_replays_share_the_steps_of_a_longer_epoch():
    once = epoch_order(KEY, 26, 8, epoch_steps=10).reshape(10, 8)
    thrice = epoch_order(KEY, 26, 8, replays=3, epoch_steps=10).reshape(10, 8)
    np.testing.assert_array_equal(thrice, once[np.arange(10) // 3])


def test_shares_are_whole_and_as_near_as_can_be():
    assert share_out(358, (1, 5, 20, 50)) == (5, 24, 94, 235)  # of 4.71, 23.55, 94.21, 235.53: two are left
    assert share_out(3, (1.0, 1.0)) == (2, 1)
    rng = np.random.default_rng(0)
    for _ in range(50):
        weights = rng.uniform(0.1, 9, rng.integers(1, 6))
        total = int(rng.integers(1, 500))
        shares = share_out(total, tuple(weights))
        assert sum(shares) == total
        assert np.abs(shares - total * weights / weights.sum()).max() < 1
    # In doubles 0.1 + 0.2 is not 0.3; nothing is lost on the way.
    assert sum(share_out(10**9, (0.1, 0.2, 0.3, 1e-9))) == 10**9


def test_steps_of_an_epoch_are_counted():
    assert steps_per_epoch(26, 8, 0) == 3
    with pytest.raises(InputError, match="epoch_steps=-1 must be at least 0"):
        steps_per_epoch(26, 8, -1)
