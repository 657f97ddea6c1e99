import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks.fab import fab, fab_distances
from piat_jax.attacks.targets import ranked_others
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from tests.attacks import golden

KEY = jax.random.key(0)
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def network(weights):
    return lambda x: golden.network(x, jnp.tanh, weights)


IMAGES, LABELS = jnp.asarray(golden.IMAGES), jnp.asarray(golden.LABELS)
WEIGHTS = [jnp.asarray(w) for w in golden.WEIGHTS]


@jax.jit
def call(attack, images, labels, key, indices, active, eps, numbers):
    return attack(network(WEIGHTS), images, labels, key=key, indices=indices, active=active, eps=eps, **numbers)


def run(fn=fab, *, rows=range(8), labels=LABELS, key=KEY, active=None, eps=0.01, norm="linf", **numbers):
    """Compiled once for each function and norm, and once more where `targets` is None: all numbers are traced."""
    rows = jnp.array(list(rows))
    active = jnp.full(rows.shape, True) if active is None else jnp.asarray(active)
    numbers = {"steps": 100, "restarts": 1, "targets": 9, **numbers}
    attack = bind(fn, norm=norm, targets=None) if numbers["targets"] is None else bind(fn, norm=norm)
    if fn is fab_distances:
        del numbers["restarts"]
    numbers = {name: jnp.int32(value) for name, value in numbers.items() if value is not None}
    eps = jnp.broadcast_to(jnp.asarray(eps, jnp.float32), (8,))[rows]
    return call(attack, IMAGES[rows], labels[rows], key, rows, active, eps, numbers)


def lengths(delta, norm):
    return np.linalg.norm(np.asarray(delta).reshape(len(delta), -1), ORDER[norm], axis=1)


class TestGolden:
    """The numbers of the PyTorch reference, in the six digits they are given in."""

    @pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
    def test_distances(self, norm, name):
        assert LABELS.tolist() == jnp.argmax(network(WEIGHTS)(IMAGES), 1).tolist()
        targets = ranked_others(network(WEIGHTS)(IMAGES), LABELS)
        for rank in range(2, 11):
            images, distances, _ = run(fab_distances, norm=norm, targets=targets[:, rank - 2])
            np.testing.assert_allclose(distances, golden.GOLDEN["fab_t_distance"][f"rank{rank}|{name}"], atol=1e-6)
            np.testing.assert_allclose(lengths(images - IMAGES, norm), distances, rtol=1e-6)
        distances = run(fab_distances, norm=norm, targets=None).distances
        np.testing.assert_allclose(distances, golden.GOLDEN["fab_t_distance"][f"untargeted|{name}"], atol=1e-6)

    @pytest.mark.parametrize(
        ("norm", "name", "targets"), [("linf", "Linf", 9), ("l2", "L2", 9), ("linf", "Linf", None)]
    )
    def test_flags(self, norm, name, targets):
        table = golden.GOLDEN["fab_t_distance"]
        nearest = table[f"untargeted|{name}"]
        if targets:
            nearest = np.min([table[f"rank{rank}|{name}"] for rank in range(2, 11)], axis=0)
        most = 1 + 2 * 100 * (targets or 1)
        for eps in (0.005, 0.01, 0.02, 0.06, 0.12):
            outcome = run(norm=norm, targets=targets, eps=eps)
            np.testing.assert_array_equal(outcome.fooled, np.asarray(nearest) <= eps)
            np.testing.assert_array_equal(outcome.queries == most, ~outcome.fooled)


SHAPE = (2, 3, 1)
SMALL = jnp.asarray(np.random.default_rng(0).uniform(0.35, 0.65, size=(5, *SHAPE)), jnp.float32)


class TestLinearModel:
    """The nearest boundary is known: margin over dual norm, where the box is out of the way."""

    w = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)

    def logits_fn(self, x):
        return 0.3 * (x.reshape(len(x), -1) - 0.5) @ self.w + jnp.array([[0.05, 0.0, 0.02]])

    @pytest.mark.parametrize(("norm", "dual", "targets"), [("linf", 1, None), ("l2", 2, 9), ("l1", np.inf, None)])
    def test_distance_is_margin_over_dual_norm(self, norm, dual, targets):
        logits = np.asarray(self.logits_fn(SMALL), np.float64)
        labels = logits.argmax(1)
        margins = logits.max(1, keepdims=True) - logits
        expected = np.empty(margins.shape)
        for i, y in enumerate(labels):
            slopes = np.linalg.norm(0.3 * (self.w - self.w[:, y : y + 1]), dual, axis=0)
            expected[i] = np.where(np.arange(3) == y, np.inf, margins[i] / np.where(slopes > 0, slopes, 1))
        expected = expected.min(1)
        attack = bind(fab_distances, norm=norm, targets=targets, steps=40)
        found = jax.jit(lambda: attack(self.logits_fn, SMALL, jnp.asarray(labels), key=KEY))()
        # FAB ends beyond the boundary, by a share of a step that has become small.
        assert np.all(found.distances > expected * (1 - 1e-5))
        np.testing.assert_allclose(found.distances, expected, rtol=0.02)

    def test_two_classes(self):
        w = np.random.default_rng(2).normal(size=(6, 2)).astype(np.float32)
        x = jnp.full((4, 3, 1, 2), 0.5) + jnp.linspace(-0.1, 0.1, 4)[:, None, None, None]

        def logits_fn(x):
            return (x.reshape(len(x), -1) - 0.37) @ w

        labels = jnp.argmax(logits_fn(x), 1)
        attack = jax.jit(lambda eps: fab(logits_fn, x, labels, key=KEY, eps=eps, steps=10))
        outcome = attack(0.9)
        np.testing.assert_array_equal(losses.correct(logits_fn(outcome.images), labels), ~outcome.fooled)
        assert outcome.fooled.all()
        np.testing.assert_array_equal(attack(1e-7).queries, 1 + 2 * 10)  # the only target there is


EPS = np.array([0.02, 0.0, 0.0195, 0.01, 0.005, 0.01, 0.02, 0.01])


class TestContract:
    def test_inside_ball_and_box_and_fooled_by_a_fresh_forward(self):
        for norm, eps, targets in (("linf", EPS, 2), ("l2", EPS * 8, None), ("l1", EPS * 40, 2)):
            outcome = run(norm=norm, eps=eps, targets=targets, steps=7, restarts=2)
            x = outcome.images
            assert 0 < outcome.fooled.sum() < 8
            assert x.min() >= 0
            assert x.max() <= 1
            distances = lengths(x - IMAGES, norm)
            assert np.all(distances <= eps.astype(np.float32) * (1 if norm == "linf" else 1 + 1e-6))
            np.testing.assert_array_equal(losses.correct(network(WEIGHTS)(x), LABELS), ~outcome.fooled)
            np.testing.assert_array_equal(x[~outcome.fooled], IMAGES[~outcome.fooled])
            assert np.all(distances[outcome.fooled] > 0)

    def test_order_and_padding_play_no_part(self):
        options = {"eps": EPS, "targets": 2, "steps": 7, "restarts": 2}
        one = run(**options)
        order = np.random.default_rng(3).permutation(8)
        for ours, permuted in zip(one, run(rows=order, **options)):
            np.testing.assert_array_equal(permuted, np.asarray(ours)[order])
        padded = run(rows=[0, 2, 3, 6, 6, 6, 6, 6], active=np.arange(8) < 4, **options)
        for ours, other in zip(one, padded):
            np.testing.assert_array_equal(other[:4], np.asarray(ours)[np.array([0, 2, 3, 6])])
        np.testing.assert_array_equal(padded.images[4:], IMAGES[jnp.full(4, 6)])
        assert not padded.fooled[4:].any()
        assert not padded.queries[4:].any()

    def test_monotone_in_eps(self):
        flags = [np.asarray(run(eps=EPS * scale, targets=2, steps=7).fooled) for scale in (0.5, 1.0, 2.0)]
        assert np.all(flags[0] <= flags[1])
        assert np.all(flags[1] <= flags[2])
        assert flags[0].sum() < flags[2].sum()

    def test_targets_one_by_one_are_targets_together(self):
        """A driver that drops what is fooled between targets gets what one call gives."""
        together = run(eps=EPS, targets=3, steps=9, restarts=1)
        left, queries = np.full(8, True), np.zeros(8, int)
        for rank, targets in enumerate(ranked_others(network(WEIGHTS)(IMAGES), LABELS)[:, :3].T):
            alone = run(eps=EPS, targets=targets, steps=9, active=left)
            queries += np.asarray(alone.queries) - left * (rank > 0)  # each call has a clean forward
            for i in np.flatnonzero(alone.fooled):
                np.testing.assert_array_equal(alone.images[i], together.images[i])
            left &= ~np.asarray(alone.fooled)
        np.testing.assert_array_equal(left, ~together.fooled)
        np.testing.assert_array_equal(queries, together.queries)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_starts(self, norm):
        """The first restart starts at the image, the second on the sphere of eps / 2, from each example's own key."""
        points = []

        @jax.jit
        def starts(key, indices, label=0):
            def logits_fn(x):
                jax.debug.callback(lambda value: points.append(np.asarray(value)), x, ordered=True)
                return jnp.stack([jnp.sum(x, (1, 2, 3)), jnp.full(len(x), -100.0)], axis=1)

            labels = jnp.full(5, label)
            return fab(logits_fn, SMALL, labels, key=key, indices=indices, eps=0.1, norm=norm, steps=1, restarts=2)

        for key, indices in ((KEY, range(5)), (KEY, [4, 3, 2, 1, 0]), (jax.random.key(1), range(5))):
            jax.block_until_ready(starts(key, jnp.array(list(indices))))
            jax.effects_barrier()
        # Each time: the clean images, and for each restart the start and where a step leads.
        assert len(points) == 3 * 5
        first, reversed_, other = (points[i : i + 5] for i in (0, 5, 10))
        np.testing.assert_array_equal(first[1], SMALL)
        np.testing.assert_allclose(lengths(first[3] - SMALL, norm), 0.05, rtol=1e-4)
        np.testing.assert_allclose(reversed_[3] - SMALL, (first[3] - SMALL)[::-1], atol=1e-6)
        assert np.all(lengths(first[3] - other[3], norm) > 0.01)
        # Where all are fooled, here by the clean images, the block ends.
        assert starts(KEY, jnp.arange(5), 1).fooled.all()
        jax.effects_barrier()
        assert len(points) == 3 * 5 + 1

    def test_misclassified_before_the_attack(self):
        wrong = LABELS.at[2].set(0)
        outcome = run(labels=wrong, eps=0.0, steps=3)
        assert outcome.fooled.tolist() == [i == 2 for i in range(8)]
        assert outcome.queries[2] == 1
        np.testing.assert_array_equal(outcome.images, IMAGES)

    def test_numbers_are_traced(self):
        compiled = call._cache_size()
        for steps, restarts, targets, eps in ((3, 1, 2, 1e-4), (5, 2, 12, 1e-5), (2, 3, 1, 1e-6)):
            queries = run(steps=steps, restarts=restarts, targets=targets, eps=eps).queries
            np.testing.assert_array_equal(queries, 1 + 2 * steps * restarts * min(targets, 9))
        assert call._cache_size() <= compiled + 1

    def test_nan_half_precision_and_gradients(self):
        def total(images, weights):
            def logits_fn(x):
                logits = network(weights)(x.astype(jnp.bfloat16))
                # Example 0 breaks as soon as it is moved, example 1 at once.
                moved = jnp.any(x[0] != IMAGES[0])
                logits = logits.at[0, 3].set(jnp.where(moved, jnp.nan, logits[0, 3]))
                return logits.at[1, 3].set(jnp.inf)

            outcome = fab(logits_fn, images, LABELS, key=KEY, eps=0.02, steps=4, targets=1)
            return jnp.sum(outcome.images), outcome

        weights = [w.astype(jnp.bfloat16) for w in WEIGHTS]
        gradients, outcome = jax.jit(jax.grad(total, (0, 1), has_aux=True))(IMAGES, weights)
        assert not any(np.any(g) for g in jax.tree.leaves(gradients[1]))
        # What is not fooled is the clean image itself, still a constant.
        assert not np.any(gradients[0])
        assert outcome.images.dtype == jnp.float32
        assert not outcome.fooled[:2].any()
        np.testing.assert_array_equal(outcome.images[:2], IMAGES[:2])
        assert outcome.fooled[2:].sum() >= 3
        right = losses.correct(network(weights)(outcome.images.astype(jnp.bfloat16)), LABELS)
        np.testing.assert_array_equal(right[2:], ~outcome.fooled[2:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 8}, "eps=8 must be in [0, 1]; did you mean 8/255?"),
        ({"eps": -0.1, "norm": "l2"}, "eps=-0.1 must be at least 0"),
        ({"norm": "linff"}, "norm='linff' is unknown; did you mean 'linf'?"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"restarts": 0}, "restarts=0 must be at least 1"),
        ({"targets": 0}, "targets=0 must be at least 1"),
        ({"targets": jnp.zeros(3, int)}, "targets has shape (3,); give a number, or one class for each of 8 examples"),
        ({"alpha_max": 1.5}, "alpha_max=1.5 must be in [0, 1]"),
        ({"eta": 0.9}, "eta=0.9 must be at least 1"),
        ({"beta": -0.1}, "beta=-0.1 must be in [0, 1]"),
        ({"images": IMAGES[0]}, "images has 3 axes"),
        ({"logits_fn": lambda x: jnp.zeros((len(x), 1))}, "they must be [8, K] with K >= 2"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = {"logits_fn": network(WEIGHTS), "images": IMAGES, "labels": LABELS, "key": KEY, **options}
    with pytest.raises(InputError, match=re.escape(message)):
        fab(**options)
