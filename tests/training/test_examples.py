"""Training data of NumPy: the same as on the device, and checked before anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.sharding import data_mesh
from piat_jax.training import Examples, fit, run_epoch, train_steps
from piat_jax.training.examples import on_device


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def on_host(examples, dtype=np.int64):
    return Examples(np.array(examples.images), np.array(examples.labels, dtype))


def train(problem, examples, state=None, by=fit, **options):
    options = {"key": problem.key, "recipe": problem.recipe, "epochs": 1, "steps_per_chunk": 9, **options}
    return by(problem.state() if state is None else state, problem.objective, examples, **options)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_numpy_trains_as_what_is_on_the_device(problem, dtype):
    expected = train(problem, problem.examples)
    compiled = train_steps._cache_size()
    given = on_host(problem.examples, dtype)
    same(train(problem, given), expected)
    same(train(problem, given, by=run_epoch)[0].params, expected.params)
    # Read by a compiled loop of the same types; and the arrays stay as they are.
    assert train_steps._cache_size() == compiled
    same(given, problem.examples._replace(labels=problem.examples.labels.astype(jnp.int32)))


def test_a_state_of_numpy_is_taken_too_and_kept(problem):
    state = jax.tree.map(np.array, problem.state())
    before = jax.tree.map(np.copy, state)
    same(train(problem, problem.examples, state=state), train(problem, problem.examples))
    same(state, before)


def test_they_are_moved_once(problem, monkeypatch):
    moved = []
    monkeypatch.setattr("piat_jax.training.epoch.on_device", lambda *_: moved.append(1))
    train(problem, on_host(problem.examples), epochs=2)
    assert moved == []


def test_what_is_on_the_device_stays_where_it_is(problem):
    placed = on_device(problem.examples, problem.objective, problem.state(), None)
    assert placed.images.unsafe_buffer_pointer() == problem.examples.images.unsafe_buffer_pointer()
    assert placed.labels.unsafe_buffer_pointer() == problem.examples.labels.unsafe_buffer_pointer()


@pytest.mark.skipif("jax.device_count() < 2")
def test_examples_are_on_every_device(problem):
    mesh = data_mesh(8)
    placed = on_device(on_host(problem.examples), problem.objective, problem.state(), mesh)
    assert len(placed.images.sharding.device_set) == len(placed.labels.sharding.device_set) == mesh.size > 1


def test_generated_examples_go_with_them(problem):
    extra = (np.full((5, 8, 8, 1), 7, np.uint8), np.array([0, 1, 2, 1, 0]))
    given = on_host(problem.examples)._replace(extra=extra)
    placed = on_device(given, problem.objective, problem.state(), None)
    same(placed, problem.examples._replace(extra=extra))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
    assert placed.extra[1].dtype == jnp.int32


IMAGES, LABELS = np.zeros((26, 8, 8, 1), np.uint8), np.zeros(26, np.int64)


@pytest.mark.parametrize("by", [fit, run_epoch])
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / 255, LABELS, r"examples images have dtype float64; give uint8 in \[0, 255\]"),
        (
            IMAGES[..., 0],
            LABELS,
            r"examples images have shape \(26, 8, 8\); give \[examples, height, width, channels\]",
        ),
        (IMAGES, LABELS[:25], "examples has 26 images but 25 labels; give one label per image"),
        (IMAGES, LABELS[:, None], r"examples labels have shape \(26, 1\); give \[examples\]"),
        (IMAGES, np.eye(3)[LABELS], "examples labels have dtype float64; give whole numbers, one class index each"),
        (IMAGES, LABELS + 3, r"examples has label 3; give labels in \[0, 3\) for num_classes=3"),
        (IMAGES, LABELS - 1, "examples has label -1; give labels in"),
        (IMAGES, LABELS + 2**32, "examples has label 2147483647; give labels in"),
        (IMAGES, np.uint64(LABELS) + np.uint64(2**63), "examples has label -1; give labels in"),
        (IMAGES, LABELS.tolist(), "examples labels are a list; give a NumPy or JAX array"),
        (IMAGES[:0], LABELS[:0], "examples is empty"),
    ],
)
def test_what_cannot_be_trained_on_is_named(problem, by, images, labels, message):
    with pytest.raises(InputError, match=message):
        train(problem, Examples(images, labels), by=by)


def test_fit_checks_what_is_on_the_device_too(problem):
    labels = problem.examples.labels.at[3].set(3)
    with pytest.raises(InputError, match="examples has label 3; give labels in"):
        train(problem, problem.examples._replace(labels=labels))
    with pytest.raises(InputError, match="examples images have dtype float32; give uint8"):
        train(problem, problem.examples._replace(images=problem.examples.images / 255))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ((IMAGES, LABELS + 3), "examples.extra has label 3"),
        ((IMAGES[:, :4], LABELS), r"examples.extra images are \(4, 8, 1\), the others \(8, 8, 1\); give one shape"),
    ],
)
def test_so_are_the_generated_examples(problem, extra, message):
    with pytest.raises(InputError, match=message):
        train(problem, Examples(IMAGES, LABELS, extra))
