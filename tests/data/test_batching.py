import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data.batching import check_batch_size, epoch_permutation, steps_per_epoch, take_batch

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
