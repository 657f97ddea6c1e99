import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.core.rng import example_keys, fold_in, named_key

KEY = jax.random.key(3)


def bits(keys):
    return np.asarray(jax.random.key_data(keys))


def test_names_give_different_streams():
    names = ["attack", "attacks", "augment", "permutation", "init", ""]
    keys = {bits(named_key(KEY, name)).tobytes() for name in names} | {bits(KEY).tobytes()}
    assert len(keys) == len(names) + 1
    np.testing.assert_array_equal(bits(named_key(KEY, "attack")), bits(named_key(KEY, "attack")))
    # Recorded: a run that is resumed by a later release draws the same numbers.
    assert bits(named_key(jax.random.key(0), "attack")).tolist() == [758320791, 3491751426]


def test_example_keys_do_not_depend_on_the_batch():
    keys = bits(example_keys(KEY, jnp.arange(10)))
    assert len({key.tobytes() for key in keys}) == 10
    np.testing.assert_array_equal(bits(example_keys(KEY, jnp.array([7, 2]))), keys[[7, 2]])
    np.testing.assert_array_equal(bits(jax.jit(example_keys)(KEY, jnp.array([4]))), keys[[4]])
    assert not np.any(np.all(bits(example_keys(jax.random.key(4), jnp.arange(10))) == keys, axis=1))


def test_numbers_are_folded_into_each_key():
    keys = example_keys(KEY, jnp.arange(4))
    expected = [bits(jax.random.fold_in(jax.random.fold_in(key, 2), 5)) for key in keys]
    np.testing.assert_array_equal(bits(fold_in(keys, 2, 5)), expected)
    np.testing.assert_array_equal(bits(jax.jit(fold_in)(keys, jnp.int32(2), jnp.int32(5))), expected)
