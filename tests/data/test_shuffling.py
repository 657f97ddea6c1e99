import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.data.shuffling import shuffled


def chi_square(counts):
    """The statistic of counts that should all be equal, and how many standard deviations it is off its mean."""
    counts = np.asarray(counts, float)
    expected = counts.sum(axis=-1, keepdims=True) / counts.shape[-1]
    freedom = counts.size - counts.size // counts.shape[-1]
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10, 97, 1000, 4097, 2**16 + 1])
def test_every_example_has_one_place(count):
    for seed in range(3):
        order = shuffled(jax.random.key(seed), jnp.arange(count), count)
        assert (order.dtype, sorted(order.tolist())) == (jnp.int32, list(range(count)))


@pytest.mark.parametrize("count", [50_000_000, 2**31])
def test_of_many_millions_only_those_at_the_places_are_computed(count):
    places = np.linspace(0, count - 1, 100_000).astype(np.uint32)
    found = np.asarray(shuffled(jax.random.key(1), jnp.asarray(places), count))
    assert len(set(found.tolist())) == len(places)
    assert 0 <= found.min() < found.max() < count
    # Whatever is asked for beside it, what stands at a place is the same.
    np.testing.assert_array_equal(shuffled(jax.random.key(1), jnp.asarray(places[::1000]), count), found[::1000])
    assert abs(chi_square(np.histogram(found, 100, (0, count))[0])) < 5


def test_every_example_is_as_likely_at_every_place():
    keys = jax.random.split(jax.random.key(2), 4000)
    orders = jax.vmap(lambda key: shuffled(key, jnp.arange(10), 10))(keys)
    at_places = [np.bincount(column, minlength=10) for column in np.asarray(orders).T]
    # Those of a permutation have 9 x 9 degrees of freedom, not 10 x 9: the statistic is 9 / 10 of what is expected.
    assert -5 < chi_square(at_places) < 5


def test_neighbours_do_not_stay_together():
    count = 5_000_011
    order = np.asarray(shuffled(jax.random.key(3), jnp.arange(400_000), count)).astype(np.int64)
    for distance in (1, 2, 2237):
        apart = (order[distance:] - order[:-distance]) % count
        assert abs(chi_square(np.histogram(apart, 64, (0, count))[0])) < 5
    for key in (jax.random.key(4), jax.random.fold_in(jax.random.key(3), 1)):
        other = np.asarray(shuffled(key, jnp.arange(400_000), count)).astype(np.int64)
        assert (order == other).mean() < 1e-4
        assert abs(chi_square(np.histogram((order - other) % count, 64, (0, count))[0])) < 5


@pytest.mark.parametrize("count", [0, 2**31 + 1])
def test_what_has_no_indices_is_refused(count):
    with pytest.raises(InputError, match=rf"count={count} must be in \[1, 2147483648\]"):
        shuffled(jax.random.key(0), jnp.arange(1), count)
