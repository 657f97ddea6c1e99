"""DDN and FMN where the minimum norm is known, and what both promise."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import MINIMUM_NORM, Nearest, ddn, fab_distances, fmn
from piat_jax.attacks.hyperplane import step_to_hyperplane
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from tests.attacks import golden

KEY = jax.random.key(0)
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
ATTACKS = [(ddn, "l2"), *((fmn, norm) for norm in ORDER)]
IMAGES, LABELS = jnp.asarray(golden.IMAGES), jnp.asarray(golden.LABELS)


def network(x):
    return golden.network(x, jnp.tanh, [jnp.asarray(w) for w in golden.WEIGHTS])


def lengths(delta, norm):
    return np.linalg.norm(np.asarray(delta, np.float64).reshape(len(delta), -1), ORDER[norm], axis=1)


@jax.jit
def call(attack, images, labels, key, indices, active):
    return attack(network, images, labels, key=key, indices=indices, active=active)


def run(attack, norm, *, rows=range(8), labels=LABELS, active=None, **options):
    rows = jnp.array(list(rows))
    active = jnp.full(rows.shape, True) if active is None else jnp.asarray(active)
    return call(bind(attack, norm=norm, **options), IMAGES[rows], labels[rows], KEY, rows, active)


class TestLinear:
    """`z_0 - z_1 = <w, x> - b`: the distance of the boundary is `|<w, x> - b| / |w|_dual` where the box is far away."""

    @staticmethod
    def examples(count=60, pixels=12):
        """Those that are not too near: from its first radius, 1, DDN comes down by 5 % a step."""
        rng = np.random.default_rng(0)
        weights = rng.normal(size=pixels)
        images = rng.uniform(0.4, 0.6, (count, 1, pixels, 1)).astype(np.float32)
        score = (images.reshape(count, -1).astype(np.float64) - 0.5) @ weights
        far = np.abs(score) / np.linalg.norm(weights) > 0.03
        images, score = images[far], score[far]
        labels = (score < 0).astype(np.int32)

        def logits_fn(x):
            margin = (x.reshape(len(x), -1) - 0.5) @ jnp.asarray(weights, jnp.float32)
            return jnp.stack([margin, -margin], axis=1)

        return logits_fn, images, labels, np.abs(score), weights

    @pytest.mark.parametrize(("attack", "norm"), ATTACKS)
    def test_the_distance_is_that_of_the_boundary(self, attack, norm):
        logits_fn, images, labels, score, weights = self.examples()
        found = jax.jit(lambda x, y: attack(logits_fn, x, y, key=KEY, norm=norm))(images, labels)
        exact = score / np.linalg.norm(weights, DUAL[norm])
        ratio = np.asarray(found.distances) / exact
        assert ratio.min() >= 1 - 1e-4  # float32, at distances down to 1e-4
        assert ratio.max() < 1 + (0.01 if attack is ddn else 0.001)
        np.testing.assert_allclose(lengths(found.images - images, norm), found.distances, rtol=1e-5)

    @pytest.mark.parametrize(("attack", "norm"), ATTACKS)
    def test_so_it_is_where_the_box_is_in_the_way(self, attack, norm):
        """The nearest point of the hyperplane in the box is what FAB steps to."""
        logits_fn, images, _, _, weights = self.examples()
        images = np.clip(images - np.float32(0.45), 0, 1)  # half of the pixels are near 0
        labels = np.asarray(jnp.argmax(logits_fn(images), axis=1))
        gaps = np.asarray(-jnp.take_along_axis(logits_fn(images), labels[:, None], axis=1)[:, 0])
        normals = np.where(labels[:, None] == 0, 1, -1) * weights
        flat = jnp.asarray(images.reshape(len(images), -1))
        exact = lengths(step_to_hyperplane(flat, jnp.asarray(normals, jnp.float32), jnp.asarray(gaps), norm), norm)
        free = np.abs(gaps) / np.linalg.norm(weights, DUAL[norm])
        found = jax.jit(lambda x, y: attack(logits_fn, x, y, key=KEY, norm=norm, steps=300))(images, labels)
        ratio = np.asarray(found.distances) / exact
        assert np.any(exact > 1.01 * free)  # else the box is not in the way
        assert ratio.min() >= 1 - 1e-4
        assert np.median(ratio) < 1.001
        assert ratio.max() < 1.02


class TestContract:
    @pytest.mark.parametrize(("attack", "norm"), ATTACKS)
    def test_inside_the_box_and_misclassified_by_a_fresh_forward(self, attack, norm):
        found = run(attack, norm)
        x = np.asarray(found.images)
        assert x.min() >= 0
        assert x.max() <= 1
        np.testing.assert_allclose(lengths(x - np.asarray(IMAGES), norm), found.distances, rtol=1e-5)
        # They lie at the boundary itself, where forwards that round differently may differ.
        of_label, other = losses.label_and_best_other(network(x), LABELS)
        assert np.all(other - of_label > -1e-5)
        assert losses.misclassified(network(jnp.clip(x + 1e-3 * (x - IMAGES), 0, 1)), LABELS).all()
        assert found.queries.tolist() == [101] * 8

    @pytest.mark.parametrize(("attack", "norm"), ATTACKS)
    def test_as_near_as_what_fab_finds(self, attack, norm):
        found, other = run(attack, norm), run(fab_distances, norm)
        ratio = np.asarray(found.distances) / np.asarray(other.distances)
        assert np.median(ratio) < 1.1
        assert ratio.min() > 0.8

    @pytest.mark.parametrize(("attack", "norm"), ATTACKS)
    def test_order_and_padding_play_no_part(self, attack, norm):
        whole = run(attack, norm)
        order = np.random.default_rng(3).permutation(8)
        for ours, permuted in zip(whole, run(attack, norm, rows=order)):
            np.testing.assert_array_equal(permuted, np.asarray(ours)[order])
        padded = run(attack, norm, rows=[0, 2, 3, 6, 6, 6, 6, 6], active=np.arange(8) < 4)
        for ours, other in zip(whole, padded):
            np.testing.assert_array_equal(other[:4], np.asarray(ours)[np.array([0, 2, 3, 6])])
        np.testing.assert_array_equal(padded.images[4:], IMAGES[jnp.full(4, 6)])
        assert np.isinf(padded.distances[4:]).all()
        assert not padded.queries[4:].any()

    @pytest.mark.parametrize(("attack", "norm"), ATTACKS)
    def test_what_is_misclassified_as_it_is_has_distance_0(self, attack, norm):
        found = run(attack, norm, labels=LABELS.at[2].set(0))
        assert found.distances[2] == 0
        np.testing.assert_array_equal(found.images[2], IMAGES[2])
        assert np.all(np.delete(np.asarray(found.distances), 2) > 0)

    @pytest.mark.parametrize(("attack", "norm"), ATTACKS)
    def test_nothing_is_found_where_there_is_nothing(self, attack, norm):
        def logits_fn(x):
            flat = jnp.stack([jnp.zeros(len(x)), jnp.ones(len(x))], axis=1)
            # Example 1 breaks as soon as it is moved.
            moved = jnp.any(x != IMAGES, axis=(1, 2, 3)) & (jnp.arange(len(x)) == 1)
            return jnp.where(moved[:, None], jnp.nan, flat + 0 * x.sum((1, 2, 3))[:, None])

        found = jax.jit(lambda x: attack(logits_fn, x, jnp.ones(8, int), key=KEY, norm=norm, steps=5))(IMAGES)
        assert np.isinf(found.distances).all()
        np.testing.assert_array_equal(found.images, IMAGES)

    def test_where_there_is_no_gradient_ddn_draws_one_an_example(self):
        """The logits are steps of the brightness: no gradient anywhere, and any direction may lead over a step."""

        def attack(images, labels, indices, key):
            points = []

            def logits_fn(x):
                jax.debug.callback(lambda value: points.append(np.asarray(value)), x, ordered=True)
                return jnp.stack([jnp.ones(len(x)), jnp.round(x.sum((1, 2, 3)))], axis=1) * jnp.array([[1.0, 0.0]])

            found = jax.jit(lambda x, y, i: ddn(logits_fn, x, y, key=key, indices=i, steps=1))(images, labels, indices)
            jax.block_until_ready(found)
            jax.effects_barrier()
            return points[-1] - np.asarray(images)

        images, labels = jnp.full((3, 8, 8, 1), 0.5), jnp.zeros(3, int)
        one = attack(images, labels, jnp.arange(3), KEY)
        np.testing.assert_allclose(lengths(one, "l2"), 1.05, rtol=1e-4)  # the radius grew
        np.testing.assert_array_equal(attack(images, labels, jnp.array([2, 1, 0]), KEY), one[::-1])
        assert np.all(lengths(one - attack(images, labels, jnp.arange(3), jax.random.key(1)), "l2") > 0.1)
        assert np.all(lengths(one[:2] - one[1:], "l2") > 0.1)

    def test_numbers_are_traced_and_no_gradient_flows(self):
        def total(arguments, gamma, steps):
            images, scale = arguments
            found = fmn(lambda x: scale * network(x), images, LABELS, key=KEY, gamma=gamma, steps=steps)
            return jnp.sum(found.images) + jnp.sum(found.distances), found

        compiled = jax.jit(jax.grad(total, has_aux=True))
        for gamma, steps in ((0.05, 4), (0.1, 7)):
            gradients, found = compiled((IMAGES, 2.0), gamma, steps)
            assert not any(np.any(gradient) for gradient in gradients)
            assert found.queries.tolist() == [steps + 1] * 8
        assert compiled._cache_size() == 1


def test_they_have_names():
    assert list(MINIMUM_NORM) == ["ddn", "fab-norm", "fmn"]
    assert MINIMUM_NORM["fab-norm"] is fab_distances
    assert isinstance(run(MINIMUM_NORM["fmn"], "l2"), Nearest)


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (ddn, {"norm": "linf"}, "norm='linf' is not supported by ddn; give 'l2', or use fmn or fab"),
        (ddn, {"gamma": 1.5}, "gamma=1.5 must be in (0, 1]"),
        (ddn, {"start_eps": -1.0}, "start_eps=-1.0 must be at least 0"),
        (ddn, {"steps": 0}, "steps=0 must be at least 1"),
        (fmn, {"norm": "l3"}, "norm='l3' is unknown"),
        (fmn, {"alpha": -1.0}, "alpha=-1.0 must be at least 0"),
        (fmn, {"alpha_last": -1.0}, "alpha_last=-1.0 must be at least 0"),
        (fmn, {"gamma": 0.0}, "gamma=0.0 must be in (0, 1]"),
        (fmn, {"gamma_last": 2.0}, "gamma_last=2.0 must be in [0, 1]"),
        (fmn, {"steps": 1.5}, "steps=1.5 must be a whole number of at least 1"),
        (fmn, {"images": IMAGES[0]}, "images has 3 axes"),
        (fmn, {"key": 0}, "key"),
        (fmn, {"logits_fn": lambda x: jnp.zeros((len(x), 1))}, "they must be [8, K] with K >= 2"),
    ],
)
def test_bad_arguments_are_refused(attack, options, message):
    options = {"logits_fn": network, "images": IMAGES, "labels": LABELS, "key": KEY, **options}
    with pytest.raises(InputError, match=re.escape(message)):
        attack(**options)
