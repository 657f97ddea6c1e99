import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from piat_jax import losses
from piat_jax.core.checks import InputError
from piat_jax.objectives import mart

RNG = np.random.default_rng(0)
Z, OTHER = 3 * RNG.normal(size=(2, 6, 4))
LABELS = np.array([0, 1, 2, 3, 0, 3])
ROWS = np.arange(6)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def unit(z):
    return z / np.sqrt((z * z).sum(-1, keepdims=True))


def margin(kappa):
    others = np.array([max(z[j] for j in range(4) if j != y) for z, y in zip(Z, LABELS)])
    return -np.maximum(Z[ROWS, LABELS] - others + kappa, 0)


def best_other(p):
    return np.where(np.arange(4)[None] == LABELS[:, None], 0, p).max(-1)


def jensen_shannon(z, other):
    p, q = softmax(z), softmax(other)
    m = (p + q) / 2
    return ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2


def dlr(z, label, target=None):
    ranked = np.sort(z)[::-1]
    if target is None:
        return -(z[label] - max(np.delete(z, label))) / (ranked[0] - ranked[2])
    return -(z[label] - z[target]) / (ranked[0] - (ranked[2] + ranked[3]) / 2)


P = softmax(Z)
TARGETS = (LABELS + 2) % 4
TARGET = np.eye(4)[LABELS] / 2 + np.eye(4)[(LABELS + 1) % 4] / 2
WEIGHT = 1 - softmax(Z)[ROWS, LABELS]
VALUES = {
    "cross_entropy": (lambda z, _: losses.cross_entropy(z, LABELS), -np.log(softmax(Z)[ROWS, LABELS])),
    "margin_0": (lambda z, _: losses.margin(z, LABELS, kappa=0.0), margin(0.0)),
    "margin_1": (lambda z, _: losses.margin(z, LABELS, kappa=1.0), margin(1.0)),
    "margin_50": (lambda z, _: losses.margin(z, LABELS), margin(50.0)),
    "dlr": (lambda z, _: losses.dlr(z, LABELS), [dlr(z, y) for z, y in zip(Z, LABELS)]),
    "targeted_dlr": (
        lambda z, _: losses.targeted_dlr(z, LABELS, TARGETS),
        [dlr(z, y, t) for z, y, t in zip(Z, LABELS, TARGETS)],
    ),
    "targeted_margin": (lambda z, _: losses.targeted_margin(z, LABELS, TARGETS), Z[ROWS, TARGETS] - Z[ROWS, LABELS]),
    "kl": (losses.kl_divergence, (softmax(Z) * (np.log(softmax(Z)) - np.log(softmax(OTHER)))).sum(-1)),
    "probability_margin": (lambda z, _: losses.probability_margin(z, LABELS), best_other(P) - P[ROWS, LABELS]),
    "boosted": (
        lambda z, _: losses.boosted_cross_entropy(z, LABELS),
        -np.log(P[ROWS, LABELS]) - np.log(1.0001 - best_other(P) + 1e-12),
    ),
    "kl_from_target": (lambda z, _: losses.kl_from_target(jnp.float32(TARGET), z), (TARGET * np.log(0.5 / P)).sum(-1)),
    "jensen_shannon": (losses.jensen_shannon, jensen_shannon(Z, OTHER)),
    "cosine": (losses.cosine_distance, 1 - (unit(Z) * unit(OTHER)).sum(-1)),
    "squared": (losses.squared_distance, ((Z - OTHER) ** 2).sum(-1)),
    "nmse": (
        lambda z, o: losses.normalized_mse(z, o, LABELS),
        WEIGHT * ((unit(Z) - unit(OTHER)) ** 2).sum(-1),
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_and_gradients(name):
    loss, expected = VALUES[name]
    loss = jax.jit(loss)
    z, other = jnp.float32(Z), jnp.float32(OTHER)
    np.testing.assert_allclose(loss(z, other), expected, rtol=2e-5, atol=2e-5)
    assert loss(z, other).shape == (6,)
    check_grads(lambda z, o: loss(z, o), (z, other), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-3)


@pytest.mark.parametrize("name", VALUES)
def test_bfloat16_logits_give_float32(name):
    loss, _ = VALUES[name]
    z, other = jnp.bfloat16(Z), jnp.bfloat16(OTHER)
    value = loss(z, other)
    assert value.dtype == jnp.float32
    # Nothing but the inputs is rounded.
    np.testing.assert_allclose(value, loss(z.astype(jnp.float32), other.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("name", VALUES)
def test_extreme_logits_stay_finite(name):
    loss, _ = VALUES[name]
    run = jax.jit(jax.value_and_grad(lambda z, o: loss(z, o).sum(), (0, 1)))
    signs = jnp.float32(np.sign(Z))
    for z, other in (
        (1e4 * signs, -1e4 * signs),
        (0 * signs, 0 * signs),
        (1e4 * signs, 0 * signs),
        (signs, 1e-30 * signs),
    ):
        value, gradients = run(z, other)
        assert np.all(np.isfinite([value]))
        assert np.all(np.isfinite(gradients))


class TestCorrect:
    def test_first_highest_logit_wins(self):
        logits = jnp.array([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [3.0, 3.0, 0.0], [3.0, 3.0, 0.0]])
        assert losses.correct(logits, jnp.array([1, 0, 0, 1])).tolist() == [True, False, True, False]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_false_where_a_logit_is_not_finite(self, bad):
        for column in range(3):
            logits = jnp.zeros((3, 3)).at[jnp.arange(3), jnp.arange(3)].set(1.0).at[:, column].set(bad)
            assert not np.any(losses.correct(logits, jnp.arange(3)))


class TestMargin:
    def test_two_classes(self):
        logits = jnp.array([[2.0, -1.0], [2.0, -1.0]])
        assert losses.margin(logits, jnp.array([0, 1]), kappa=4.0).tolist() == [-7.0, -1.0]

    def test_ties(self):
        assert losses.margin(jnp.ones((1, 3)), jnp.array([1]), kappa=2.0).tolist() == [-2.0]

    def test_clamped_beyond_kappa_with_no_gradient(self):
        logits, labels = jnp.array([[0.0, 3.0]]), jnp.array([0])
        value, gradient = jax.value_and_grad(lambda z: losses.margin(z, labels, kappa=2.0).sum())(logits)
        assert value == 0
        assert not np.any(gradient)

    def test_all_others_far_below_the_published_mask(self):
        # A mask of -1000 instead of -inf would become the best other class here.
        value = losses.margin(jnp.array([[0.0, -3000.0, -4000.0]]), jnp.array([0]), kappa=0.0)
        assert value.tolist() == [-3000.0]


class TestDLR:
    def test_does_not_see_the_scale(self):
        z = jnp.float32(Z)
        np.testing.assert_allclose(losses.dlr(1e3 * z, LABELS), losses.dlr(z, LABELS), rtol=1e-5)
        np.testing.assert_allclose(
            losses.targeted_dlr(1e3 * z, LABELS, TARGETS), losses.targeted_dlr(z, LABELS, TARGETS), rtol=1e-5
        )

    def test_one_without_gradient_where_the_label_is_third(self):
        logits = jnp.array([[1.0, 3.0, 2.0, 0.0]])
        value, gradient = jax.value_and_grad(lambda z: losses.dlr(z, jnp.array([0])).sum())(logits)
        assert value == 1
        np.testing.assert_allclose(gradient, 0, atol=1e-6)

    def test_sign_tells_whether_it_is_correct(self):
        z = jnp.float32(Z)
        np.testing.assert_array_equal(losses.dlr(z, LABELS) < 0, losses.correct(z, LABELS))

    def test_few_classes_are_refused(self):
        with pytest.raises(InputError, match="dlr needs logits of at least 3 classes, not 2; give a margin loss"):
            losses.dlr(jnp.zeros((1, 2)), jnp.array([0]))
        with pytest.raises(InputError, match="targeted_dlr needs logits of at least 4 classes, not 3"):
            losses.targeted_dlr(jnp.zeros((1, 3)), jnp.array([0]), jnp.array([1]))


class TestKL:
    def test_gradients_flow_through_both_arguments(self):
        p, q = softmax(Z), softmax(OTHER)
        by_p, by_q = jax.grad(lambda z, o: losses.kl_divergence(z, o).sum(), (0, 1))(jnp.float32(Z), jnp.float32(OTHER))
        ratio = np.log(p / q)
        np.testing.assert_allclose(by_p, p * (ratio - (p * ratio).sum(-1, keepdims=True)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(by_q, q - p, rtol=1e-4, atol=1e-6)

    def test_zero_at_equality(self):
        z = jnp.float32(Z)
        value, gradients = jax.value_and_grad(lambda z, o: losses.kl_divergence(z, o).sum(), (0, 1))(z, z)
        assert value == 0
        np.testing.assert_allclose(jnp.stack(gradients), 0, atol=1e-6)


class TestBoosted:
    def test_bounds_are_those_of_the_constants(self):
        sure = jnp.array([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0]])
        value = losses.boosted_cross_entropy(sure, jnp.array([0, 0]))
        np.testing.assert_allclose(value, [-np.log(1.0001), 50 - np.log(1e-4)], atol=2e-2, rtol=1e-5)
        assert value[0] < -9e-5


class TestJensenShannon:
    def test_laws(self):
        z, other = jnp.float32(Z), jnp.float32(OTHER)
        value = losses.jensen_shannon(z, other)
        assert np.all((value >= 0) & (value <= np.log(2)))
        np.testing.assert_allclose(losses.jensen_shannon(other, z), value, rtol=1e-5)
        np.testing.assert_allclose(losses.jensen_shannon(z, z), 0, atol=1e-7)
        np.testing.assert_allclose(
            losses.jensen_shannon(1e3 * jnp.eye(2), 1e3 * jnp.eye(2)[::-1]), np.log(2), rtol=1e-6
        )

    def test_temperature_scales_the_logits(self):
        z, other = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]])
        sharp = losses.jensen_shannon(z, other, temperature=0.5)
        np.testing.assert_allclose(sharp, losses.jensen_shannon(2 * z, 2 * other), rtol=1e-6)


class TestCosine:
    def test_zero_vectors_are_no_distance_apart(self):
        zero = jnp.zeros((6, 4))
        value, gradient = jax.value_and_grad(lambda z: losses.cosine_distance(z, zero).sum())(zero)
        assert value == 0
        assert np.all(np.isfinite(gradient))


class TestNormalizedMSE:
    nmse = staticmethod(lambda z, other, **options: losses.normalized_mse(z, other, jnp.array(LABELS), **options))

    def test_laws(self):
        z, other = jnp.float32(Z), jnp.float32(OTHER)
        for scale in (0.01, 1.0, 250.0):
            np.testing.assert_allclose(self.nmse(z, scale * z), 0, atol=1e-6)
            np.testing.assert_allclose(self.nmse(z, -scale * z), 4 * WEIGHT, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(self.nmse(z, scale * other), self.nmse(z, other), rtol=1e-4)
        cosine = (unit(Z) * unit(OTHER)).sum(-1)
        np.testing.assert_allclose(self.nmse(z, other), 2 * (1 - cosine) * WEIGHT, rtol=1e-5, atol=1e-6)

    def test_gradient_pulls_on_no_norm(self):
        other = jnp.float32(OTHER)
        gradient = jax.grad(lambda o: self.nmse(jnp.float32(Z), o).sum())(other)
        np.testing.assert_allclose((gradient * other).sum(-1), 0, atol=1e-5)
        assert np.abs(gradient).max() > 1e-2

    def test_weight_is_the_clean_probability(self):
        # The other argument's probabilities play no part: only its direction does.
        z = jnp.array([[4.0, 0.0], [4.0, 0.0]])
        value = losses.normalized_mse(z, jnp.array([[0.0, 1.0], [0.0, 9.0]]), jnp.array([0, 1]))
        p = 1 / (1 + np.exp(-4.0))
        np.testing.assert_allclose(value, [2 * (1 - p), 2 * p], rtol=1e-5)

    def test_weight_gradient(self):
        z, other = jnp.float32(Z), jnp.float32(OTHER)
        gradient = functools.partial(jax.grad(lambda z, **o: self.nmse(z, other, **o).sum()), z)
        distance = jnp.float32(((unit(Z) - unit(OTHER)) ** 2).sum(-1))
        through_weight = jax.grad(lambda z: jnp.sum(self.weight(z) * distance))(z)
        np.testing.assert_allclose(gradient() - gradient(weight_gradient=False), through_weight, rtol=1e-3, atol=1e-5)
        assert np.abs(through_weight).max() > 1e-2
        np.testing.assert_array_equal(self.nmse(z, other), self.nmse(z, other, weight_gradient=False))

    @staticmethod
    def weight(z):
        return 1 - jax.nn.softmax(z)[ROWS, LABELS]

    def test_finite_gradient_at_zero_logits(self):
        zero = jnp.zeros((6, 4))
        gradients = jax.grad(lambda z, o: self.nmse(z, o).sum(), (0, 1))(zero, jnp.float32(OTHER))
        assert np.all(np.isfinite(jnp.stack(gradients)))


@pytest.mark.parametrize(
    "loss",
    [
        losses.cross_entropy,
        losses.margin,
        losses.dlr,
        losses.probability_margin,
        losses.boosted_cross_entropy,
        lambda z, y: losses.targeted_margin(z, y, TARGETS),
        lambda z, y: losses.normalized_mse(z, z, y),
    ],
)
def test_labels_are_checked(loss):
    z = jnp.float32(Z)
    with pytest.raises(InputError, match=f"labels range from .* with the {z.shape[1]} classes of the logits"):
        loss(z, LABELS + z.shape[1])
    with pytest.raises(InputError, match="labels range from -"):
        loss(z, LABELS - z.shape[1])
    with pytest.raises(InputError, match=r"labels have shape .*; give one for each of the"):
        loss(z, LABELS[:1])
    with pytest.raises(InputError, match="labels are float32; give an array of integers"):
        loss(z, jnp.float32(LABELS))
    with pytest.raises(InputError, match=r"logits are of shape .*; give \[B, K\]"):
        loss(z[0], LABELS)
    jax.jit(loss)(z, LABELS + z.shape[1])  # traced, they have no values yet


@pytest.mark.parametrize("distance", [losses.kl_divergence, losses.jensen_shannon, losses.squared_distance])
def test_pairs_of_logits_have_one_shape(distance):
    z = jnp.float32(Z)
    with pytest.raises(InputError, match="give logits of the same images"):
        distance(z, z[:1])


def test_smoothing_is_a_share():
    with pytest.raises(InputError, match=r"smoothing=3.0 must be in \[0, 1\]"):
        losses.cross_entropy(jnp.float32(Z), LABELS, smoothing=3.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_label_smoothing_spreads_over_the_other_classes(smoothing):
    rng = np.random.default_rng(3)
    z, labels = rng.normal(size=(5, 4)), np.array([0, 1, 2, 3, 1])
    target = np.full((5, 4), smoothing / 3)
    target[np.arange(5), labels] = 1 - smoothing
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    found = losses.cross_entropy(jnp.asarray(z, jnp.float32), jnp.asarray(labels), smoothing=smoothing)
    np.testing.assert_allclose(found, -(target * log_p).sum(1), rtol=1e-5)


def weighted_divergence(logits, labels):
    return mart.weighted_divergence(logits, jnp.asarray(OTHER, jnp.float32), labels)


def nmse(logits, labels):
    return losses.normalized_mse(logits, jnp.asarray(OTHER, jnp.float32), labels)


@pytest.mark.parametrize(
    "loss", [losses.cross_entropy, losses.margin, losses.boosted_cross_entropy, nmse, weighted_divergence]
)
def test_a_loss_of_probabilities_is_its_mean_over_labels_drawn_from_them(loss):
    target = RNG.dirichlet(np.ones(4), size=6).astype(np.float32)
    logits = jnp.asarray(Z, jnp.float32)
    each = np.stack([loss(logits, jnp.full(6, label)) for label in range(4)], axis=1)
    np.testing.assert_allclose(loss(logits, jnp.asarray(target)), (target * each).sum(1), rtol=1e-5)
    one_hot = jax.nn.one_hot(LABELS, 4)
    np.testing.assert_allclose(loss(logits, one_hot), loss(logits, jnp.asarray(LABELS)), rtol=1e-6)


def test_a_class_of_probability_0_counts_nothing():
    logits = jnp.array([[0.0, -jnp.inf]])
    assert losses.cross_entropy(logits, jnp.array([[1.0, 0.0]])).item() == 0


def test_probabilities_of_other_classes_are_refused():
    with pytest.raises(InputError, match=r"labels have shape \(6, 3\) for logits of shape \(6, 4\)"):
        losses.cross_entropy(jnp.asarray(Z, jnp.float32), jnp.zeros((6, 3)))
