"""Gradients that are not finite, radii without bound, few bits, targets, and boxes of any width: all attacks alike."""

import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import apgd, bind, cw, fab, fgsm, mi_fgsm, pgd, pgd_counted, square
from piat_jax.attacks.ascent import round_towards
from piat_jax.core.checks import InputError
from piat_jax.core.norms import L2_RULES, cap_radius, diameter, finite_entries, projection_radius
from tests.jaxprs import equations
from tests.processors import skip_unless_compiled

KEY = jax.random.key(0)
RNG = np.random.default_rng(7)
SHAPE = (5, 4, 1)
B = 12
WEIGHTS = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
# A black frame around pixels that are far from 0.
IMAGES = jnp.zeros((B, *SHAPE), jnp.float32).at[:, 1:-1, 1:-1].set(RNG.uniform(0.3, 0.7, size=(B, 3, 2, 1)))

IMAGE_ATTACKS = {
    "fgsm": bind(fgsm),
    "fgsm_l2": bind(fgsm, norm="l2"),
    "pgd": bind(pgd, start="none", steps=3),
    "pgd_best": bind(pgd, steps=3, keep="best", restarts=2),
    "pgd_l2": bind(pgd, norm="l2", start="none", steps=3),
    "pgd_advertorch": bind(pgd, norm="l2", steps=3, l2_rule="advertorch"),
    "mi_fgsm": bind(mi_fgsm, steps=3),
    "mi_fgsm_l2": bind(mi_fgsm, norm="l2", steps=3),
    "cw": bind(cw, steps=3),
}
OUTCOME_ATTACKS = {
    **{f"apgd_{norm}": bind(apgd, norm=norm, steps=20) for norm in ("linf", "l2", "l1")},
    **{f"fab_{norm}": bind(fab, norm=norm, steps=20, targets=2) for norm in ("linf", "l2", "l1")},
    **{f"square_{norm}": bind(square, norm=norm, queries=400) for norm in ("linf", "l2", "l1")},
}


def inner(x):
    return x[:, 1:-1, 1:-1].reshape(len(x), -1)


def gamma(x):
    """The frame is cut off, and yet its gradient is 0 times infinity."""
    return inner(jax.nn.relu(x**0.5)) @ WEIGHTS


def gamma_without_the_frame(x):
    return (inner(x) ** 0.5) @ WEIGHTS


LABELS = jnp.argmax(gamma(IMAGES), axis=1)
HALF = jnp.full((B, *SHAPE), 0.5)


def attacked(attack, logits_fn, images=IMAGES, labels=LABELS, **options):
    return jax.jit(lambda x, y: attack(logits_fn, x, y, key=KEY, **options))(images, labels)


def norm_of(attack):
    return attack.options["norm"]


def lengths(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)


@pytest.mark.parametrize("name", IMAGE_ATTACKS)
def test_a_gradient_that_is_nan_somewhere_leaves_the_rest_as_it_is(name):
    gradient = jax.grad(lambda x: jnp.sum(losses.cross_entropy(gamma(x), LABELS)))(IMAGES)
    assert np.isnan(gradient).sum() == B * (5 * 4 - 6)
    options = {"eps": 0.05} if IMAGE_ATTACKS[name].fn is fgsm else {"eps": 0.05, "step_size": 0.03}
    found = attacked(IMAGE_ATTACKS[name], gamma, **options)
    assert np.all(np.isfinite(found))
    if "best" in name or "advertorch" in name or name == "cw":
        return  # they start off the frame's black, where the gradient is what it should be
    np.testing.assert_allclose(found, attacked(IMAGE_ATTACKS[name], gamma_without_the_frame, **options), atol=1e-6)


@pytest.mark.parametrize("name", ["apgd_linf", "apgd_l2", "apgd_l1", "fab_linf", "fab_l2", "fab_l1"])
def test_a_gradient_that_is_nan_somewhere_hides_no_adversarial_image(name):
    eps = {"linf": 0.04, "l2": 0.08, "l1": 0.15}[norm_of(OUTCOME_ATTACKS[name])]
    options = {"start": "none"} if "apgd" in name else {}
    blind = attacked(OUTCOME_ATTACKS[name], gamma, eps=eps, **options)
    seeing = attacked(OUTCOME_ATTACKS[name], gamma_without_the_frame, eps=eps, **options)
    assert np.any(seeing.fooled)
    assert not np.all(seeing.fooled)
    np.testing.assert_array_equal(blind.fooled, seeing.fooled)
    assert np.all(np.isfinite(blind.images))


def test_infinite_entries_keep_their_sign():
    gradient = jnp.array([[1.0, -2.0, jnp.inf, jnp.nan], [0.0, -jnp.inf, 0.0, jnp.nan], [0.0, 3.0, 0.0, 0.0]])
    np.testing.assert_array_equal(finite_entries(gradient), [[1, -2, 2, 0], [0, -1, 0, 0], [0, 3, 0, 0]])

    def root(x):  # infinite slope at a black pixel
        return jnp.stack([-jnp.sqrt(x).sum((1, 2, 3)), jnp.full(len(x), -1e-3)], axis=1)

    black = jnp.zeros((1, 2, 2, 1))
    for attack in (bind(fgsm), bind(mi_fgsm), bind(pgd, start="none"), bind(pgd, start="none", norm="l2")):
        assert not losses.correct(root(attacked(attack, root, black, jnp.array([0]), eps=0.1)), jnp.array([0]))


def test_logits_that_are_not_finite_are_no_success():
    """Below a half the network is lost; only above it does another class win."""

    def lost(x):
        total = x.mean((1, 2, 3))
        return jnp.where(total[:, None] < 0.5, jnp.nan, jnp.stack([total * 0 + 0.6, total], axis=1))

    x = jnp.full((1, 1, 1, 1), 0.55)
    # The loss of class 0 rises with the pixel; a start below a half would be taken for the best.
    for seed in range(4):
        found = pgd(lost, x, jnp.array([0]), key=jax.random.key(seed), eps=0.1, step_size=0.04, restarts=4, keep="best")
        assert np.isfinite(lost(found)).all()
        assert found[0, 0, 0, 0] > 0.6


@pytest.mark.parametrize("name", [*IMAGE_ATTACKS, *OUTCOME_ATTACKS])
def test_a_radius_beyond_the_box_reaches_every_corner(name):
    """Class 0 loses at one corner alone, so all of the box has to be in reach."""
    attack = {**IMAGE_ATTACKS, **OUTCOME_ATTACKS}[name]
    norm, rng = norm_of(attack), np.random.default_rng(5)
    up = jnp.asarray(rng.uniform(size=(1, *SHAPE)) < 0.5)
    images, labels = jnp.asarray(rng.uniform(0.1, 0.9, size=(B, *SHAPE)), jnp.float32), jnp.zeros(B, int)
    # Of 20 pixels, 19.7 have to be at the corner; Square, which sees no gradient, gets less far.
    needed = 11.0 if attack.fn is square else 19.7

    def corner(x):
        return jnp.stack([jnp.full(len(x), needed), jnp.sum(jnp.where(up, x, 1 - x), (1, 2, 3))], axis=1)

    @jax.jit
    def run(radius):
        options = {"step_size": radius, "steps": 10} if attack.fn is pgd else {}
        return attack(corner, images, labels, key=KEY, eps=radius, **options)

    for radius in (1.0,) if norm == "linf" else (diameter(SHAPE, norm), 1e20, 1e30, np.inf):
        found = run(radius)
        x = getattr(found, "images", found)
        assert np.all((x >= 0) & (x <= 1))
        assert np.all(losses.misclassified(corner(x), labels))
        assert np.all(getattr(found, "fooled", True))


@pytest.mark.parametrize("rule", ["exact", "advertorch"])
def test_a_ball_that_holds_the_box_does_not_draw_back(rule):
    """Pixels of small gradient reach the corner too, which projecting onto the ball would never let them."""
    weights = jnp.array([1.0, 0.5, 0.1, 0.02])

    def network(x):
        return jnp.stack([-(x.reshape(len(x), 4) @ weights), jnp.zeros(len(x))], axis=1)

    options = {"norm": "l2", "step_size": 2.0, "steps": 60, "start": "none", "l2_rule": rule}
    x, y = jnp.zeros((1, 2, 2, 1)), jnp.array([0])
    for radius in (2.0, jnp.float32(2.0)):
        found = jax.jit(lambda eps: pgd(network, x, y, key=KEY, eps=eps, **options))(radius)
        np.testing.assert_allclose(found, 1.0, atol=1e-6)
    assert pgd(network, x, y, key=KEY, eps=1.9, **options).min() < 0.99


def test_radii_that_are_traced_are_as_those_that_are_not():
    for radius in (0.5, 1.99, 2.0, 1e30, np.inf):
        for fn in (cap_radius, projection_radius):
            traced = jax.jit(lambda r, fn=fn: jnp.asarray(fn(r, (2, 2, 1), "l2")))(radius)
            assert traced == np.float32(fn(radius, (2, 2, 1), "l2"))


def test_without_a_box_a_radius_is_bounded():
    with pytest.raises(InputError, match=re.escape("eps=1e+20 must be in [0, 1e+15]")):
        pgd(gamma, IMAGES, LABELS, key=KEY, eps=1e20, norm="l2", box=None)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", IMAGE_ATTACKS)
def test_few_bits_stay_in_ball_and_box(name, dtype):
    skip_unless_compiled(dtype)
    attack, norm = IMAGE_ATTACKS[name], norm_of(IMAGE_ATTACKS[name])
    images = jnp.asarray(RNG.uniform(0, 1, size=(B, *SHAPE)), dtype).at[0].set(0).at[1].set(1)

    @jax.jit
    def run(eps):
        options = {} if attack.fn is fgsm else {"step_size": eps / 2}
        return attack(lambda x: inner(x.astype(jnp.float32)) @ WEIGHTS, images, LABELS, key=KEY, eps=eps, **options)

    for eps in (0.0, 8 / 255, 0.3):
        found = run(eps)
        assert found.dtype == dtype
        assert np.all(np.isfinite(found.astype(jnp.float32)))
        assert np.all((found >= 0) & (found <= 1))
        moved = lengths(np.asarray(found, np.float64) - np.asarray(images, np.float64), norm)
        assert np.all(moved <= eps * (1 + 1e-6))
        assert np.all(moved[2:] >= 0.5 * eps)


def test_rounding_is_there_for_compilers_that_keep_more_bits():
    """XLA for GPUs takes what goes to bfloat16 and back for what it was."""
    x = jnp.zeros(3)
    program = jax.make_jaxpr(lambda x, clean: round_towards(x, clean, jnp.bfloat16))(x, x)
    (rounding,) = (each for each in equations(program) if each.primitive.name == "reduce_precision")
    assert (rounding.params["exponent_bits"], rounding.params["mantissa_bits"]) == (8, 7)


def test_the_network_sees_few_bits():
    seen = []

    def network(x):
        seen.append(x.dtype)
        return inner(x).astype(jnp.float32) @ WEIGHTS

    pgd(network, IMAGES.astype(jnp.bfloat16), LABELS, key=KEY, eps=0.1, keep="best")
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}


class TestTargets:
    targets = (LABELS + 1) % 3
    options: ClassVar = {"eps": 0.6, "step_size": 0.1}

    def reached(self, images):
        return np.asarray(losses.correct(gamma_without_the_frame(images), self.targets))

    @pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, bind(losses.margin, kappa=1.0)])
    def test_it_climbs_towards_the_target(self, loss):
        def distance(x):
            return np.asarray(losses.cross_entropy(gamma_without_the_frame(x), self.targets))

        for attack in (bind(pgd, step_size=0.05), bind(pgd, norm="l2", step_size=0.05), bind(fgsm), bind(mi_fgsm)):
            found = attacked(attack, gamma_without_the_frame, HALF, loss=loss, eps=0.05, targets=self.targets)
            assert np.all(distance(found) < distance(HALF))

    def test_keep_restarts_and_targets_go_together(self):
        """The best is never worse than the last: 40 of 64 must not become 6."""
        last = self.reached(attacked(pgd, gamma_without_the_frame, targets=self.targets, **self.options))
        assert last.sum() > B / 2
        for more in ({"keep": "best"}, {"restarts": 3}, {"keep": "best", "restarts": 3}):
            best = attacked(pgd, gamma_without_the_frame, targets=self.targets, **self.options, **more)
            assert np.all(self.reached(best) >= last)

    def test_the_best_is_the_surest_of_the_target(self):
        """Between two iterates that miss the target the one nearer to it counts, however wrong the other is."""

        def network(x):
            value = x[:, 0, 0, 0]
            other = jnp.where(value < 0.55, 1.5, 0.5)
            return jnp.stack([jnp.full(len(x), 1.0), -10 * (value - 0.58) ** 2, other], axis=1)

        x = jnp.full((1, 1, 1, 1), 0.5)
        options = {"eps": 0.5, "step_size": 0.1, "steps": 4, "start": "none", "targets": jnp.array([1])}
        best = pgd(network, x, jnp.array([0]), key=KEY, keep="best", **options)
        np.testing.assert_allclose(best, 0.6, atol=1e-6)

    def test_patience_ends_at_the_target(self):
        """Misclassified on the way, it goes on until the target is reached, and there it stops."""

        def network(x):
            value = x[:, 0, 0, 0]
            return jnp.stack([0.3 - value, jnp.full(len(x), 0.0), value - 0.75], axis=1)

        x, labels = jnp.full((1, 1, 1, 1), 0.1), jnp.array([0])
        options = {"eps": 0.9, "step_size": 0.125, "steps": 8, "start": "none", "patience": 0}
        untargeted = pgd(network, x, labels, key=KEY, **options)
        found, missed, taken = pgd_counted(network, x, labels, key=KEY, targets=jnp.array([2]), **options)
        np.testing.assert_allclose(untargeted, 0.35, atol=1e-6)
        np.testing.assert_allclose(found, 0.85, atol=1e-6)
        assert (missed.item(), taken.item()) == (6, 8)

    def test_a_target_far_behind_still_pulls(self):
        """`-margin` is flat where the target is more than kappa behind."""

        def network(x):
            return jnp.stack([jnp.full(len(x), 100.0), x.mean((1, 2, 3))], axis=1)

        found = attacked(cw, network, HALF, jnp.zeros(B, int), eps=0.1, step_size=0.02, targets=jnp.ones(B, int))
        np.testing.assert_allclose(found, 0.6, atol=1e-6)

    @pytest.mark.parametrize("loss", ["ce", "dlr"])
    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_apgd_counts_the_target_alone(self, loss, norm):
        eps = {"linf": 0.4, "l2": 0.6, "l1": 2.5}[norm]
        options = {"eps": eps, "norm": norm, "steps": 20, "loss": loss}
        found = attacked(bind(apgd, **options), gamma_without_the_frame, targets=self.targets)
        np.testing.assert_array_equal(found.fooled, self.reached(found.images))
        assert 0 < found.fooled.sum() <= B
        anything = attacked(bind(apgd, **options), gamma_without_the_frame)
        assert anything.fooled.sum() >= found.fooled.sum()

    def test_apgd_with_two_classes(self):
        def two(x):
            return jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.45)], axis=1)

        found = apgd(two, HALF, jnp.zeros(B, int), key=KEY, eps=0.1, loss="dlr", steps=5, targets=jnp.ones(B, int))
        assert np.all(found.fooled)

    @pytest.mark.parametrize("attack", [pgd, fgsm, mi_fgsm, apgd])
    def test_a_class_that_is_not_there_is_refused(self, attack):
        with pytest.raises(InputError, match="targets range from 3 to 3; with the 3 classes"):
            attack(gamma_without_the_frame, HALF, LABELS, key=KEY, targets=jnp.full(B, 3))


class TestL2Rules:
    """Each code's step, written out in NumPy."""

    w = RNG.normal(size=SHAPE) * np.linspace(0.2, 2, 4)[None, :, None]
    x0 = np.asarray(RNG.uniform(0.05, 0.95, size=(B, *SHAPE)), np.float32)
    eps, step_size = 0.9, 0.5

    def network(self, scale):
        def logits(x):
            value = scale * jnp.sum(jnp.sin(3 * x) * jnp.asarray(self.w, jnp.float32)[None], (1, 2, 3))
            return jnp.stack([-value, jnp.zeros(len(x))], axis=1)

        return logits

    def loops(self, rule, scale, steps=4):
        x = self.x0.astype(np.float64)
        for _ in range(steps):
            g = scale * 3 * np.cos(3 * x) * self.w
            size = np.sqrt((g**2).sum((1, 2, 3), keepdims=True))
            x = x + self.step_size * g / np.maximum(size + rule.offset, max(rule.floor, 1e-300))
            if rule.box_first:
                x = np.clip(x, 0, 1)
            delta = x - self.x0
            size = np.sqrt((delta**2).sum((1, 2, 3), keepdims=True))
            x = self.x0 + delta * np.minimum(1, self.eps / size)
            if not rule.box_first:
                x = np.clip(x, 0, 1)
        return x

    @pytest.mark.parametrize("scale", [1.0, 1e-7, 1e-10])
    @pytest.mark.parametrize("name", L2_RULES)
    def test_against_loops(self, name, scale):
        options = {"eps": self.eps, "step_size": self.step_size, "steps": 4, "norm": "l2", "start": "none"}
        found = attacked(
            bind(pgd, l2_rule=name, loss=raw, **options), self.network(scale), jnp.asarray(self.x0), jnp.zeros(B, int)
        )
        np.testing.assert_allclose(found, self.loops(L2_RULES[name], scale), atol=2e-5)
        assert np.all(lengths(found - self.x0, "l2") <= self.eps * (1 + 1e-6))

    def test_the_rules_differ(self):
        found = [self.loops(rule, 1e-10) for rule in L2_RULES.values()]
        for number, one in enumerate(found):
            for other in found[:number]:
                assert np.abs(one - other).max() > 3e-4

    def test_starts(self):
        """Uniform in the box and projected, nearly all of the radius is used; uniform in length, half of it."""
        images, labels = jnp.full((200, 8, 8, 3), 0.5), jnp.zeros(200, int)

        def start(rule, norm="l2"):
            options = {"eps": 0.5, "step_size": 0.0, "steps": 1, "norm": norm, "l2_rule": rule}
            x = pgd(lambda x: x.reshape(len(x), -1)[:, :2], images, labels, key=KEY, **options)
            return lengths(x - images, norm), x

        np.testing.assert_allclose(start("advertorch")[0], 0.5, rtol=1e-5)
        for rule in ("exact", "trades", "awp"):
            assert 0.2 < start(rule)[0].mean() < 0.3
        # Under Linf there is one rule.
        np.testing.assert_array_equal(start("advertorch", "linf")[1], start("exact", "linf")[1])

    def test_an_unknown_rule(self):
        with pytest.raises(InputError, match="l2_rule='advertroch' is unknown; did you mean 'advertorch'"):
            pgd(gamma, IMAGES, LABELS, key=KEY, l2_rule="advertroch")


def raw(logits, labels):
    return -logits[:, 0]


@pytest.mark.parametrize("box", [(0.0, 255.0), (-1.0, 1.0), None])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "mi_fgsm", "cw", "pgd_l2"])
def test_the_bound_on_eps_follows_the_box(name, box):
    width = 255.0 if box is None else box[1] - box[0]
    low = 0.0 if box is None else box[0]
    eps = width * 8 / 255
    options = {} if "fgsm" in name else {"step_size": eps / 2}
    found = attacked(
        IMAGE_ATTACKS[name], lambda x: inner(x) @ WEIGHTS, low + width * HALF, LABELS, eps=eps, box=box, **options
    )
    assert lengths(found - (low + width * HALF), norm_of(IMAGE_ATTACKS[name])).max() == pytest.approx(eps, rel=1e-5)


def test_a_box_that_is_none():
    with pytest.raises(InputError, match=re.escape("box=(1.0, 0.0) must be None or (low, high)")):
        pgd(gamma, IMAGES, LABELS, key=KEY, box=(1.0, 0.0))
    with pytest.raises(InputError, match=re.escape("eps=300 must be in [0, 255]")):
        pgd(gamma, IMAGES, LABELS, key=KEY, eps=300, box=(0.0, 255.0))


def test_images_just_outside_the_box_are_named_in_full():
    with pytest.raises(
        InputError, match=re.escape("range from 0 to 1.00000012; rounding left [0, 1]: give images.clip")
    ):
        pgd(gamma, IMAGES.at[0, 0, 0].set(1.0000001), LABELS, key=KEY)


@pytest.mark.parametrize(
    "attack",
    [bind(pgd, steps=2), bind(fgsm), bind(mi_fgsm), bind(apgd, steps=3), bind(fab, steps=2), bind(square, queries=3)],
)
class TestWhatANetworkMayReturn:
    def test_logits_beside_a_state(self, attack):
        with pytest.raises(InputError, match=re.escape("logits_fn returns a tuple; give logits alone: lambda images:")):
            attack(lambda x: (gamma(x), {}), IMAGES, LABELS, key=KEY)

    def test_one_logit(self, attack):
        with pytest.raises(InputError, match=re.escape("logits of shape (12, 1) for 12 images; they must be [12, K]")):
            attack(lambda x: gamma(x)[:, :1], IMAGES, jnp.zeros(B, int), key=KEY)

    def test_numpy_inside(self, attack):
        with pytest.raises(InputError, match="logits_fn computes with NumPy, which JAX cannot differentiate"):
            attack(lambda x: np.asarray(x).reshape(B, -1)[:, :3], IMAGES, LABELS, key=KEY)

    def test_a_module_of_equinox(self, attack):
        Module = type("Net", (), {"__module__": "equinox.nn", "__call__": lambda self, x: x.reshape(3, -1) @ x})
        with pytest.raises(
            InputError, match=re.escape("an Equinox Net, which takes one example; give jax.vmap(module)")
        ):
            attack(Module(), IMAGES, LABELS, key=KEY)

    def test_spellings_of_robustbench(self, attack):
        for norm in ("Linf", "L2", "linf"):
            jax.eval_shape(lambda x, norm=norm: attack(gamma, x, LABELS, key=KEY, eps=0.1, norm=norm), IMAGES)


def test_another_spelling_is_the_same_attack():
    for theirs, ours in (("Linf", "linf"), ("L2", "l2")):
        found = [attacked(bind(pgd, eps=0.1, steps=2, norm=norm), gamma) for norm in (theirs, ours)]
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("attack", [pgd, apgd, fab, square])
def test_a_number_is_no_key(attack):
    for key in (0, jax.random.key_data(KEY)):
        with pytest.raises(InputError, match=r"give jax.random.key\(0\)"):
            attack(gamma, IMAGES, LABELS, key=key)


def test_a_network_without_keys_has_no_noise_to_average():
    with pytest.raises(InputError, match=re.escape("eot=2 calls logits_fn(images, keys), which takes no keys")):
        apgd(gamma, IMAGES, LABELS, key=KEY, eot=2)
