import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import (
    ATTACKS,
    apgd,
    apgd_ascent,
    cw,
    fab,
    fgsm,
    mi_fgsm,
    msd,
    multi_targeted,
    n_fgsm,
    pgd,
    pgd_least_likely,
    square,
)
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SHAPE = (2, 2, 1)
IMAGES = jnp.asarray(RNG.uniform(size=(6, *SHAPE)), jnp.float32).at[0, 0, 0].set(0.0).at[1, 0, 0].set(1.0)
LABELS = jnp.array([0, 1, 2, 0, 1, 2])
WEIGHTS = (
    jnp.asarray(3 * RNG.normal(size=(4, 5)), jnp.float32),
    jnp.asarray(1.5 * RNG.normal(size=(5, 3)), jnp.float32),
)


def network(weights):
    """Not concave, so that starts, steps and restarts make a difference."""
    return lambda x: jnp.sin(x.reshape(len(x), -1) @ weights[0]) @ weights[1]


@jax.jit
def run(attack, images=IMAGES, labels=LABELS, key=KEY, indices=None, weights=WEIGHTS):
    return attack(network(weights), images, labels, key=key, indices=indices)


@jax.jit
def score(images, labels=LABELS):
    """Higher is better: the order `keep="best"` promises."""
    logits = network(WEIGHTS)(images)
    return 1000.0 * ~losses.correct(logits, labels) + losses.cross_entropy(logits, labels)


SMALL = {"eps": 0.1, "step_size": 0.04}
TABLE = {
    "fgsm": bind(fgsm, eps=0.1),
    "fgsm_l2": bind(fgsm, eps=0.1, norm="l2"),
    "mi_fgsm": bind(mi_fgsm, eps=0.1, steps=3),
    "mi_fgsm_l2": bind(mi_fgsm, eps=0.1, steps=3, step_size=0.07, norm="l2"),
    "cw": bind(cw, eps=0.1, steps=3),
    **{
        f"pgd_{norm}_{start}_{restarts}_{keep}": bind(
            pgd, **SMALL, steps=3, norm=norm, start=start, restarts=restarts, keep=keep
        )
        for norm, start, restarts, keep in [
            ("linf", "uniform", 1, "last"),
            ("linf", "normal", 2, "best"),
            ("linf", "none", 1, "best"),
            ("l2", "uniform", 2, "last"),
            ("l2", "normal", 1, "best"),
            ("l2", "none", 1, "last"),
        ]
    },
}


def lengths(delta, norm):
    return np.linalg.norm(
        np.asarray(delta, np.float64).reshape(len(delta), -1), {"linf": np.inf, "l2": 2}[norm], axis=1
    )


def norm_of(attack):
    return dict(attack.static).get("norm", "linf")


def chooses(attack):
    """Whether it takes the best of several points."""
    options = dict(attack.static)
    return options.get("keep") == "best" or options.get("restarts", 1) > 1


each = pytest.mark.parametrize("attack", TABLE.values(), ids=TABLE)


def sizes(attack, **numbers):
    """The attack with other eps and step size, where it takes one."""
    if attack.fn is fgsm:
        del numbers["step_size"]
    return bind(attack, **numbers)


def test_table_is_complete():
    assert [attack.fn for attack in TABLE.values()].count(pgd) == 7
    of_evaluations = [fgsm, pgd, mi_fgsm, cw, multi_targeted, pgd_least_likely]
    assert list(ATTACKS.values()) == [apgd_ascent, n_fgsm, msd, *of_evaluations]  # the first three are to train with


@each
def test_inside_ball_and_box(attack):
    eps, indices = jnp.array([0.0, 0.05, 0.1, 0.3, 0.6, 1.0]), jnp.arange(6) + 70
    x = run(sizes(attack, eps=eps, step_size=eps / 2 + 0.01), indices=indices)
    assert x.shape == IMAGES.shape
    assert x.dtype == IMAGES.dtype
    assert np.all(lengths(x - IMAGES, norm_of(attack)) <= eps + 1e-6)
    assert x.min() >= 0
    assert x.max() <= 1
    np.testing.assert_array_equal(x[0], IMAGES[0])  # no radius, no change
    assert np.all(lengths(x - IMAGES, "linf")[1:] > 1e-3)
    # One radius each is one attack each, and its place in the batch is of no account.
    alone = run(sizes(attack, eps=eps[4], step_size=eps[4] / 2 + 0.01), IMAGES[4:5], LABELS[4:5], indices=indices[4:5])
    if chooses(attack):
        # Of two points that are as good as each other, rounding decides; which one is the processor's.
        np.testing.assert_allclose(score(alone, LABELS[4:5])[0], score(x)[4], rtol=1e-3)
    else:
        np.testing.assert_allclose(alone[0], x[4], atol=1e-4)


def test_randomness_comes_from_the_index():
    attack = TABLE["pgd_linf_uniform_1_last"]
    np.testing.assert_array_equal(run(attack), run(attack, indices=jnp.arange(6)))
    moved = lengths(run(attack) - run(attack, indices=jnp.arange(6) + 70), "linf")
    assert np.sum(moved > 1e-3) >= 3


@pytest.mark.parametrize("name", ["fgsm", "mi_fgsm", "pgd_linf_normal_2_best"])
def test_without_jit(name):
    eager = TABLE[name](network(WEIGHTS), IMAGES, LABELS, key=KEY)
    if chooses(TABLE[name]):
        np.testing.assert_allclose(score(eager), score(run(TABLE[name])), rtol=1e-4)
    else:
        np.testing.assert_allclose(eager, run(TABLE[name]), atol=1e-5)


@pytest.mark.parametrize("name", ["fgsm", "mi_fgsm", "pgd_linf_uniform_1_last", "pgd_linf_none_1_best"])
def test_no_gradient_flows_through(name):
    def loss(weights, images):
        return losses.cross_entropy(network(weights)(images), LABELS).mean()

    through = jax.jit(jax.grad(lambda w, x: loss(w, run(TABLE[name], x, weights=w)), (0, 1)))(WEIGHTS, IMAGES)
    constant = jax.jit(jax.grad(loss))(WEIGHTS, run(TABLE[name]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), through[0], constant)
    assert not np.any(through[1])


def test_sweeps_compile_once():
    traces = []

    @jax.jit
    def sweep(attack):
        traces.append(attack)
        return attack(network(WEIGHTS), IMAGES, LABELS, key=KEY)

    for eps in (0.01, 0.1, 0.3):
        attack = bind(cw, eps=eps, step_size=eps / 4, steps=2, loss=bind(losses.margin, kappa=eps))
        assert lengths(sweep(attack) - IMAGES, "linf").max() > 0.4 * eps
    assert len(traces) == 1


class TestLinearModel:
    """On a linear model the best point is known: the corner, or the rim, in the direction of the weights."""

    w = RNG.normal(size=(4,)).astype(np.float32)

    def attack(self, attack, images=IMAGES):
        def logits_fn(x):
            return jnp.stack([x.reshape(len(x), -1) @ self.w, jnp.zeros(len(x))], axis=1)

        return np.asarray(attack(logits_fn, images, jnp.zeros(len(images), int), key=KEY))

    @pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin])
    @pytest.mark.parametrize("start", ["uniform", "normal", "none"])
    def test_linf(self, start, loss):
        x = self.attack(bind(pgd, eps=0.2, step_size=0.05, steps=9, start=start, loss=loss))
        expected = np.clip(np.asarray(IMAGES) - 0.2 * np.sign(self.w).reshape(SHAPE), 0, 1)
        np.testing.assert_allclose(x, expected, atol=1e-6)

    def test_one_step(self):
        expected = np.clip(np.asarray(IMAGES) - 0.2 * np.sign(self.w).reshape(SHAPE), 0, 1)
        np.testing.assert_allclose(self.attack(bind(fgsm, eps=0.2)), expected, atol=1e-6)
        np.testing.assert_allclose(self.attack(bind(mi_fgsm, eps=0.2, steps=4)), expected, atol=1e-6)

    @pytest.mark.parametrize("attack", [bind(fgsm), bind(pgd, step_size=0.2, steps=40), bind(mi_fgsm, steps=4)])
    def test_l2(self, attack):
        images = jnp.full((3, *SHAPE), 0.5)
        expected = 0.5 - 0.2 * (self.w / np.linalg.norm(self.w)).reshape(SHAPE)
        x = self.attack(bind(attack, eps=0.2, norm="l2"), images)
        np.testing.assert_allclose(x, np.broadcast_to(expected, x.shape), atol=1e-4)

    def test_without_a_box(self):
        x = self.attack(bind(pgd, eps=0.2, step_size=0.05, steps=9, box=None))
        np.testing.assert_allclose(x, np.asarray(IMAGES) - 0.2 * np.sign(self.w).reshape(SHAPE), atol=1e-6)
        x = self.attack(bind(pgd, eps=0.2, step_size=0.05, steps=9, box=(0.25, 0.75)), jnp.full((1, *SHAPE), 0.4))
        np.testing.assert_allclose(x[0], np.where(self.w > 0, 0.25, 0.6).reshape(SHAPE), atol=1e-6)

    @pytest.mark.parametrize(
        "attack", [bind(fgsm, norm="l2"), bind(mi_fgsm, norm="l2"), bind(mi_fgsm), bind(pgd, norm="l2", start="none")]
    )
    def test_saturated_logits_do_not_stop_the_attack(self, attack):
        # The gradient of the cross-entropy is about e^-60 here: tiny, and yet it says which way is up.
        def logits_fn(x):
            return jnp.stack([jnp.full(len(x), 60.0), -x.reshape(len(x), -1) @ self.w], axis=1)

        images = jnp.full((1, *SHAPE), 0.5)
        x = bind(attack, eps=0.05)(logits_fn, images, jnp.array([0]), key=KEY)
        np.testing.assert_allclose(lengths(x - images, norm_of(attack)), 0.05, rtol=1e-3)


def gradient(x):
    """Of the summed cross-entropy of `network`, in float64."""
    first, second = (np.asarray(w, np.float64) for w in WEIGHTS)
    hidden = x.reshape(6, 4) @ first
    logits = np.sin(hidden) @ second
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(6), np.asarray(LABELS)] -= 1
    return (p @ second.T * np.cos(hidden) @ first.T).reshape(x.shape)


class TestAgainstLoops:
    x0 = np.asarray(IMAGES, np.float64)

    def test_fgsm(self):
        expected = np.clip(self.x0 + 0.1 * np.sign(gradient(self.x0)), 0, 1)
        np.testing.assert_allclose(run(TABLE["fgsm"]), expected, atol=1e-6)

    @pytest.mark.parametrize("decay", [0.0, 0.3])
    def test_mi_fgsm(self, decay):
        x, momentum = self.x0, 0.0
        for _ in range(4):
            g = gradient(x)
            momentum = decay * momentum + g / np.abs(g).sum((1, 2, 3), keepdims=True)
            x = np.clip(np.clip(x + 0.1 * np.sign(momentum), self.x0 - 0.25, self.x0 + 0.25), 0, 1)
        ours = run(bind(mi_fgsm, eps=0.25, step_size=0.1, steps=4, decay=decay))
        np.testing.assert_allclose(ours, x, atol=1e-5)

    def test_mi_fgsm_steps_share_the_radius(self):
        ours = run(bind(mi_fgsm, eps=0.3, steps=3))
        np.testing.assert_allclose(ours, run(bind(mi_fgsm, eps=0.3, step_size=0.3 / 3, steps=3)), atol=1e-6)

    def test_pgd_linf(self):
        x = self.x0
        for _ in range(3):
            x = np.clip(np.clip(x + 0.1 * np.sign(gradient(x)), self.x0 - 0.15, self.x0 + 0.15), 0, 1)
        ours = run(bind(pgd, eps=0.15, step_size=0.1, steps=3, start="none"))
        np.testing.assert_allclose(ours, x, atol=1e-5)

    def test_pgd_l2(self):
        def length(d):
            return np.sqrt((d * d).sum((1, 2, 3), keepdims=True))

        x = self.x0
        for _ in range(3):
            g = gradient(x)
            delta = x + 0.1 * g / length(g) - self.x0
            x = np.clip(self.x0 + delta * np.minimum(1, 0.15 / length(delta)), 0, 1)
        ours = run(bind(pgd, eps=0.15, step_size=0.1, steps=3, start="none", norm="l2"))
        np.testing.assert_allclose(ours, x, atol=1e-5)


def probed(attack, images=IMAGES, **options):
    """Every point an attack asks the model about, in order, the loops unrolled."""
    points = []

    def logits_fn(x):
        jax.debug.callback(lambda value: points.append(np.asarray(value)), x, ordered=True)
        return network(WEIGHTS)(x)

    result = jax.block_until_ready(attack(logits_fn, images, LABELS, key=KEY, **options))
    jax.effects_barrier()
    return points, result


class TestStarts:
    """A step size of zero and a huge radius leave the start as it is, but for the box."""

    def test_uniform_fills_the_ball_and_is_clipped(self):
        start = run(bind(pgd, eps=0.3, step_size=0.0, steps=1))
        moved = np.asarray(start - IMAGES)
        assert 0.2 < np.abs(moved).max() <= 0.3 + 1e-6
        assert start.min() >= 0
        assert start.max() <= 1
        assert len(np.unique(np.round(moved, 4))) > 20
        assert np.any(start != run(bind(pgd, eps=0.3, step_size=0.0, steps=1), key=jax.random.key(1)))

    def test_l2_start_lies_in_the_ball(self):
        images, labels = jnp.full((500, *SHAPE), 0.5), jnp.zeros(500, int)
        moved = lengths(run(bind(pgd, eps=0.3, step_size=0.0, steps=1, norm="l2"), images, labels) - images, "l2")
        assert moved.max() <= 0.3 + 1e-6
        assert 0.12 < moved.mean() < 0.18  # a uniform radius

    def test_normal_is_neither_clipped_nor_scaled_before_the_first_gradient(self):
        for eps in (1e-4, 0.3):
            points, result = probed(bind(pgd, eps=eps, step_size=eps / 4, steps=2, start="normal"), jnp.round(IMAGES))
            noise = np.asarray(points[0] - jnp.round(IMAGES))
            assert points[0].min() < 0
            assert points[0].max() > 1
            assert 0.0005 < noise.std() < 0.0015
            assert np.all(lengths(result - jnp.round(IMAGES), "linf") <= eps + 1e-6)
            assert np.asarray(points[1]).min() >= 0

    def test_uniform_is_clipped_before_the_first_gradient(self):
        points, _ = probed(bind(pgd, eps=0.3, steps=1))
        assert points[0].min() >= 0
        assert points[0].max() <= 1

    @pytest.mark.parametrize(
        ("options", "forwards"),
        [({}, 3), ({"keep": "best"}, 4), ({"keep": "best", "restarts": 2}, 8), ({"restarts": 2}, 8)],
    )
    def test_number_of_forwards(self, options, forwards):
        assert len(probed(bind(pgd, eps=0.1, steps=3, **options))[0]) == forwards


class TestKeepAndRestarts:
    big = bind(pgd, eps=0.5, step_size=0.3)

    def test_best_is_never_worse_than_last_and_more_steps_never_hurt(self):
        scores = {n: score(run(bind(self.big, steps=n, keep="best"))) for n in (2, 5)}
        last = {n: score(run(bind(self.big, steps=n))) for n in (2, 5)}
        for n, fewer in ((5, 2),):
            assert np.all(scores[n] >= scores[fewer])
        for n in scores:
            assert np.all(scores[n] >= last[n] - 1e-4)
        assert np.any(scores[5] > last[5] + 1e-3)
        # The best is the best of the iterates, no less.
        points, _ = probed(bind(self.big, steps=5, keep="best"))
        np.testing.assert_allclose(np.max([score(p) for p in points[1:]], axis=0), scores[5], rtol=1e-4)

    @pytest.mark.parametrize("keep", ["last", "best"])
    def test_more_restarts_never_hurt(self, keep):
        scores = [score(run(bind(self.big, steps=1, step_size=0.05, restarts=n, keep=keep))) for n in (1, 2, 4)]
        assert np.all(scores[1] >= scores[0] - 1e-5)
        assert np.all(scores[2] >= scores[1] - 1e-5)
        assert np.any(scores[2] > scores[0] + 1e-3)

    def test_misclassified_counts_before_a_higher_loss(self):
        # Class 0 loses at first, with little loss; then it wins again under a loss that ignores that.
        def logits_fn(x):
            total = x.reshape(len(x), -1).sum(1)
            return jnp.stack([jnp.abs(total - 1.0) - 0.5, jnp.zeros(len(x))], axis=1)

        def loss(logits, labels):
            return logits[:, 0]  # maximised: it rises again beyond the valley

        x = jnp.full((1, *SHAPE), 0.2)
        climb = bind(pgd, eps=1.0, step_size=0.05, steps=8, start="none", loss=loss, box=None)
        assert losses.correct(logits_fn(climb(logits_fn, x, jnp.array([0]), key=KEY)), jnp.array([0]))
        best = bind(climb, keep="best")(logits_fn, x, jnp.array([0]), key=KEY)
        assert not losses.correct(logits_fn(best), jnp.array([0]))


def test_cw_is_pgd_on_the_margin():
    def attack(**options):
        return run(bind(cw, **SMALL, start="none", **options))

    def margin(logits, labels):
        return losses.margin(logits, labels, kappa=50.0)

    expected = run(bind(pgd, **SMALL, start="none", steps=20, loss=margin))
    np.testing.assert_array_equal(attack(), expected)
    # With no margin to reach, what is misclassified already has no gradient and stays.
    wrong = ~losses.correct(network(WEIGHTS)(IMAGES), LABELS)
    assert 0 < wrong.sum() < 6
    still = lengths(attack(loss=bind(losses.margin, kappa=0.0)) - IMAGES, "linf") == 0
    np.testing.assert_array_equal(still, wrong)
    assert np.all(lengths(attack() - IMAGES, "linf") > 0)


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (pgd, {"eps": 8}, "eps=8 must be in [0, 1]; did you mean 8/255?"),
        (fgsm, {"eps": 8}, "did you mean 8/255?"),
        (mi_fgsm, {"eps": 8}, "did you mean 8/255?"),
        (pgd, {"eps": float("nan")}, "eps=nan must be in [0, 1]"),
        (pgd, {"eps": -0.1, "norm": "l2"}, "eps=-0.1 must be at least 0"),
        (pgd, {"eps": jnp.array([0.1] * 5 + [2.0])}, "must be in [0, 1]"),
        (pgd, {"step_size": -1.0}, "step_size=-1.0 must be in [0, 1]"),
        (pgd, {"step_size": 2}, "step_size=2 must be in [0, 1]; did you mean 2/255?"),
        (pgd, {"step_size": -1.0, "norm": "l2"}, "step_size=-1.0 must be at least 0"),
        (pgd, {"steps": 0}, "steps=0 must be at least 1"),
        (mi_fgsm, {"steps": 0}, "steps=0 must be at least 1"),
        (mi_fgsm, {"decay": -1.0}, "decay=-1.0 must be at least 0"),
        (pgd, {"restarts": 0}, "restarts=0 must be at least 1"),
        (pgd, {"steps": 2.5}, "steps=2.5 must be a whole number of at least 1"),
        (mi_fgsm, {"steps": 2.5}, "steps=2.5 must be a whole number of at least 1"),
        (pgd, {"eps": "8/255"}, "eps='8/255' is text; give a number"),
        (pgd, {"key": 0}, "key=0 is not a key; give jax.random.key(0)"),
        (pgd, {"images": 255 * IMAGES}, "give pixels in [0, 1] and normalise inside logits_fn"),
        (fgsm, {"images": IMAGES * jnp.nan}, "images range from nan to nan"),
        (pgd, {"labels": LABELS - 1}, "labels range from -1 to"),
        (pgd, {"labels": LABELS[:, None]}, "labels have shape (6, 1); give one for each of the 6 rows of logits"),
        (pgd, {"labels": LABELS.astype(float)}, "labels are float32; give an array of integers"),
        (pgd, {"norm": "l3"}, "norm='l3' is unknown"),
        (pgd, {"start": "unifrom"}, "start='unifrom' is unknown; did you mean 'uniform'?"),
        (pgd, {"keep": "first"}, "keep='first' is unknown"),
        (pgd, {"images": IMAGES[0]}, "images has 3 axes"),
        (fgsm, {"images": jnp.zeros((1, *SHAPE), jnp.uint8)}, "images has dtype uint8"),
    ],
)
def test_bad_arguments_are_refused(attack, options, message):
    options = dict(options)
    images, labels, key = (options.pop(*pair) for pair in (("images", IMAGES), ("labels", LABELS), ("key", KEY)))
    with pytest.raises(InputError, match=re.escape(message)):
        attack(network(WEIGHTS), images, labels, key=key, **options)


@pytest.mark.parametrize("attack", [pgd, fgsm, mi_fgsm, apgd, fab, square])
def test_what_cannot_be_called_is_refused(attack):
    with pytest.raises(InputError, match="logits_fn='resnet18' cannot be called; give a function of images"):
        attack("resnet18", IMAGES, LABELS, key=KEY, eps=0.1)


def test_a_varied_step_moves_only_examples_that_take_it():
    def back_at_the_second(logits_fn, images, x, index):
        return logits_fn, jnp.where(index == 1, images, x)

    def attacked(**options):
        options = {**SMALL, "steps": 2, "start": "none", "loss": losses.cross_entropy, **options}
        return jax.jit(lambda: pgd(network(WEIGHTS), IMAGES, LABELS, key=KEY, **options))()

    once = attacked(steps=1)
    # The second step starts from the images, so it is the first one again.
    np.testing.assert_array_equal(attacked(vary=back_at_the_second), once)
    # Of an example with one step nothing is taken back; nor of one whose patience was used up before.
    budget = jnp.array([1, 2] * 3)
    np.testing.assert_array_equal(attacked(vary=back_at_the_second, step_budget=budget), once)
    wrong = ~losses.correct(network(WEIGHTS)(IMAGES), LABELS)
    assert np.any(wrong)
    assert not np.all(wrong)
    shifted = functools.partial(lambda logits_fn, images, x, index: (logits_fn, x + jnp.where(index == 1, 0.01, 0.0)))
    stopped = attacked(vary=shifted, patience=0)
    np.testing.assert_array_equal(stopped[wrong], IMAGES[wrong])
    assert np.all(np.any(stopped != IMAGES, axis=(1, 2, 3)) == ~wrong)

    # Another model for each step: that of the first takes part in the first alone.
    def other_model(logits_fn, images, x, index):
        return (lambda x: jnp.where(index == 0, -1.0, 1.0) * logits_fn(x)), x

    np.testing.assert_array_equal(attacked(vary=other_model, steps=1), attacked(steps=1, loss=_negated))
    for keep in ("last", "best"):
        assert attacked(vary=other_model, keep=keep).shape == IMAGES.shape


def _negated(logits, labels):
    return losses.cross_entropy(-logits, labels)
