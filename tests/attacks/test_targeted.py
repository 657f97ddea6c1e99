"""PGD at other classes: which of them it reaches, and what the best of its images is."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import multi_targeted, pgd, pgd_least_likely
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.rng import example_keys, fold_in
from tests.attacks import golden

KEY = jax.random.key(0)
IMAGES, LABELS = jnp.asarray(golden.IMAGES), jnp.asarray(golden.LABELS)
OPTIONS = {"eps": 0.005, "step_size": 0.002, "steps": 5}


def network(x):
    return golden.network(x, jnp.tanh, [jnp.asarray(w) for w in golden.WEIGHTS])


def lead_of(x):
    of_label, other = losses.label_and_best_other(network(x), LABELS)
    return np.asarray(other - of_label)


@jax.jit
def call(attack, key=KEY):
    return attack(network, IMAGES, LABELS, key=key)


def trap(x):
    """Class 0 is right; the logits of class 1 are nearer, but only those of class 2 can be reached."""
    pixel = x[:, 0, 0, 0]
    reachable = 0.2 - 0.45 + (0.5 - pixel) * 2.0
    return jnp.stack([jnp.zeros(len(x)), jnp.minimum(-0.01, -0.02 + (pixel - 0.5)), reachable], axis=1)


class TestMultiTargeted:
    def test_it_reaches_a_class_that_the_margin_alone_does_not(self):
        x, labels = jnp.full((1, 1, 1, 1), 0.5), jnp.array([0])
        options = {"key": KEY, "eps": 0.25, "step_size": 0.05, "steps": 20, "start": "none"}
        plain = pgd(trap, x, labels, loss=bind(losses.margin, kappa=50.0), **options)
        assert not losses.misclassified(trap(plain), labels)[0]
        assert losses.misclassified(trap(multi_targeted(trap, x, labels, **options)), labels)[0]
        # With one target it is the one of the highest clean logit.
        one = multi_targeted(trap, x, labels, targets=1, **options)
        assert one[0, 0, 0, 0] > 0.5
        assert not losses.misclassified(trap(one), labels)[0]

    def test_it_is_the_best_of_pgd_at_each_class(self):
        """By hand, class by class, with the same starts."""
        ranked = np.argsort(-np.asarray(network(IMAGES)) + 1e9 * jax.nn.one_hot(LABELS, 10), axis=1)[:, :9]
        for targets in (1, 3, None):
            best = np.full(8, -np.inf)
            for run in range(targets or 9):
                goal = jnp.asarray(ranked[:, run])

                def logits_of_two(x, goal=goal):  # its margin is that to the class aimed at
                    logits = network(x)
                    two = [jnp.take_along_axis(logits, c[:, None], 1) for c in (LABELS, goal)]
                    return jnp.concatenate(two, axis=1)

                starts = IMAGES + 0.005 * _uniform(fold_in(example_keys(KEY, jnp.arange(8)), run))
                x = jnp.clip(starts, 0, 1)
                for _ in range(5):
                    margin = lambda x: jnp.sum(logits_of_two(x) @ jnp.array([-1.0, 1.0]))  # noqa: E731
                    x = jnp.clip(
                        jnp.clip(x + 0.002 * jnp.sign(jax.grad(margin)(x)), IMAGES - 0.005, IMAGES + 0.005), 0, 1
                    )
                best = np.maximum(best, lead_of(x))
            found = call(bind(multi_targeted, targets=targets, **OPTIONS))
            np.testing.assert_allclose(lead_of(found), best, atol=1e-4)

    def test_more_targets_and_restarts_are_never_worse(self):
        wide = {**OPTIONS, "eps": 0.04, "step_size": 0.02}
        leads = [lead_of(call(bind(multi_targeted, targets=t, **wide))) for t in (1, 3, 9, 20)]
        for fewer, more in itertools.pairwise(leads):
            assert np.all(more >= fewer - 1e-5)
        assert np.any(leads[2] > leads[0] + 1e-3)
        np.testing.assert_array_equal(leads[2], leads[3])  # there are nine
        # Two runs a class, of which the first is not that of one run: only the mean need be better.
        two = lead_of(call(bind(multi_targeted, restarts=2, targets=3, **wide)))
        assert two.mean() >= leads[1].mean() - 1e-3

    def test_runs_are_compared_by_the_class_that_leads_and_there_are_no_more_than_classes(self):
        """The run at class 1 ends where class 2 leads by more than the run at class 2 makes it."""
        forwards = []

        def logits_fn(x):
            pixel = x[:, 0, 0, 0]
            jax.debug.callback(lambda value: forwards.append(value), pixel, ordered=True)
            two = -0.4 + jnp.where(pixel < 0.5, 0.4 * (0.5 - pixel), 1.2 * (pixel - 0.5))
            return jnp.stack([0 * pixel, pixel - 1.4, two], axis=1)

        options = {"key": KEY, "eps": 0.25, "step_size": 0.25, "steps": 2, "start": "none", "targets": 5}
        found = jax.jit(lambda x: multi_targeted(logits_fn, x, jnp.array([0]), **options))(jnp.full((1, 1, 1, 1), 0.49))
        np.testing.assert_allclose(found.ravel(), [0.74], rtol=1e-6)
        jax.effects_barrier()
        assert len(forwards) == 1 + 2 * (2 + 1)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_inside_ball_and_box_and_the_order_plays_no_part(self, norm):
        attack = bind(multi_targeted, norm=norm, targets=2, **{**OPTIONS, "eps": 0.05})
        found = call(attack)
        distance = np.linalg.norm(
            np.asarray(found - IMAGES, np.float64).reshape(8, -1), {"linf": np.inf, "l2": 2}[norm], axis=1
        )
        assert distance.max() <= 0.05 * (1 + 1e-5) + 1e-7
        assert distance.min() > 0
        assert found.min() >= 0
        assert found.max() <= 1
        order = jnp.array([3, 1, 7, 0])
        some = jax.jit(lambda x, y, i: attack(network, x, y, key=KEY, indices=i))(IMAGES[order], LABELS[order], order)
        np.testing.assert_allclose(some, found[order], atol=1e-6)
        assert call(bind(attack, steps=1)).dtype == jnp.float32

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"targets": 0}, "targets=0 must be at least 1"),
            ({"restarts": 0}, "restarts=0 must be at least 1"),
            ({"steps": 0}, "steps=0 must be at least 1"),
            ({"eps": 8}, "eps=8 must be in [0, 1]; did you mean 8/255?"),
            ({"norm": "l1"}, "norm='l1' is unknown"),
            ({"start": "no"}, "start='no' is unknown"),
            ({"l2_rule": "no"}, "l2_rule='no' is unknown"),
        ],
    )
    def test_bad_arguments_are_refused(self, options, message):
        with pytest.raises(InputError, match=re.escape(message)):
            multi_targeted(network, IMAGES, LABELS, key=KEY, **options)


def _uniform(keys):
    draw = functools.partial(jax.random.uniform, shape=(IMAGES[0].size,), minval=-1.0, maxval=1.0)
    return jax.vmap(draw)(keys).reshape(IMAGES.shape)


class TestLeastLikely:
    def test_it_is_pgd_at_the_lowest_clean_logit(self):
        logits = np.array(network(IMAGES))
        logits[np.arange(8), LABELS] = np.inf
        targets = jnp.asarray(logits.argmin(axis=1))
        options = {**OPTIONS, "eps": 0.03}
        expected = jax.jit(lambda x, t: pgd(network, x, LABELS, key=KEY, targets=t, **options))(IMAGES, targets)
        np.testing.assert_allclose(call(bind(pgd_least_likely, **options)), expected, atol=1e-6)

    def test_the_label_is_no_target_even_where_it_is_least_likely(self):
        x = jnp.full((1, 1, 1, 1), 0.5)

        def logits_fn(x):
            pixel = x.reshape(1, 1)
            return jnp.concatenate([-9 + 0 * pixel, 3 - 3 * pixel, -1 - 5 * pixel], axis=1)

        options = {"key": KEY, "eps": 0.25, "step_size": 0.25, "start": "none"}
        found = pgd_least_likely(logits_fn, x, jnp.array([0]), **options)
        np.testing.assert_allclose(found.ravel(), [0.25])  # towards class 2
