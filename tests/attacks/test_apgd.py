import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from piat_jax import losses
from piat_jax.attacks.apgd import Evaluate, apgd, run
from piat_jax.attacks.apgd_l1 import SparseApgdRule, SparseMemory
from piat_jax.attacks.apgd_steps import ApgdRule, HighestLoss, ScheduleEntry, schedule
from piat_jax.attacks.outcome import Outcome
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.norms import project_l1
from tests.attacks import golden

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NORMS = ("linf", "l2", "l1")


TOY, TOY_LABELS = jnp.asarray(golden.IMAGES), jnp.asarray(golden.LABELS)


def toy(x):
    return golden.network(x, jnp.tanh)


# Eight rows fill whole vectors: a CPU rounds those left over differently, in the network as much as in the attack.
SHAPE = (2, 3, 1)
IMAGES = jnp.asarray(RNG.uniform(size=(8, *SHAPE)), jnp.float32).at[0, 0, 0].set(0.0).at[1, 0, 0].set(1.0)
NETWORK = jnp.asarray(3 * RNG.normal(size=(6, 8)), jnp.float32), jnp.asarray(RNG.normal(size=(8, 5)), jnp.float32)


def network(x, classes=5):
    return jnp.sin(x.reshape(len(x), -1) @ NETWORK[0]) @ NETWORK[1][:, :classes]


LABELS = jnp.argmax(network(IMAGES), axis=1)


@jax.jit
def attack(bound, images=IMAGES, labels=LABELS, indices=None, active=None):
    return bound(network, images, labels, key=KEY, indices=indices, active=active)


@jax.jit
def attack_toy(bound):
    return bound(toy, TOY, TOY_LABELS, key=KEY)


def outcome_of(logits_fn, labels=0, images=IMAGES, **options):
    """The outcome on a network of this test's own, compiled as a whole: piecemeal takes many times as long."""
    labels = jnp.broadcast_to(labels, len(images))
    return jax.jit(lambda eps: apgd(logits_fn, images, labels, key=KEY, eps=eps, **options))(options.pop("eps", 0.1))


def lengths(delta, norm):
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    return np.linalg.norm(np.asarray(delta, np.float64).reshape(len(delta), -1), order, axis=1)


def assert_same(outcome, expected):
    jax.tree.map(np.testing.assert_array_equal, outcome, expected)


class TestGolden:
    def test_the_toy_is_the_same(self):
        np.testing.assert_allclose(toy(TOY)[0], golden.GOLDEN["logits_sample0"], atol=2e-6)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
    def test_runs_from_the_image(self, loss, norm):
        @jax.jit
        def attacked(eps, rank):
            radius = jnp.full(8, eps)
            rule = ApgdRule(TOY, radius, norm, 0.75)
            target = jnp.take(jax.lax.top_k(toy(TOY), 10)[1], rank - 1, axis=1)
            evaluate = Evaluate(toy, TOY_LABELS, loss, target, 1, jax.random.split(KEY, 8))
            nothing = Outcome(TOY, jnp.full(8, False), jnp.zeros(8, jnp.int32))
            return run(rule, schedule(rule, 100), evaluate, TOY, jnp.full(8, True), nothing)

        seen = 0
        for name, expected in golden.GOLDEN["apgd"].items():
            kind, its_norm, eps = name.split("|")
            kind, _, rank = kind.partition("-t")
            if (("targeted" if rank else kind), its_norm.lower()) != (loss, norm):
                continue
            seen += 1
            best, memory, outcome = attacked(jnp.float32(eps), int(rank or 2))
            robust = np.array(expected["still_correct"], bool)
            np.testing.assert_array_equal(~outcome.fooled, robust, err_msg=name)
            # What is already fooled climbs on, chaotically under DLR, and stops with the block.
            np.testing.assert_allclose(best.loss[robust], np.array(expected["best_loss"])[robust], atol=6e-6)
            halvings = np.log2(2 * float(eps) / memory.step)
            expected_halvings = np.array(expected["halvings"])[robust]
            if jax.__version__ == "0.11.2" and (loss, norm) == ("dlr", "l2"):
                # At a maximum two steps tie: its rounding takes the other one for an increase, once.
                off = np.abs(halvings[robust] - expected_halvings)
                assert np.sum(off > 1e-3) <= 1
                assert np.max(off) < 1.001
            else:
                np.testing.assert_allclose(halvings[robust], expected_halvings, atol=1e-3)
            if loss == "ce" and robust.any():
                np.testing.assert_allclose(best.loss, expected["best_loss"], atol=6e-6)
        assert seen == {("ce", "linf"): 3, ("ce", "l2"): 3, ("targeted", "linf"): 3, ("dlr", "linf"): 2}.get(
            (loss, norm), 1
        )

    @pytest.mark.parametrize("loss", ["ce", "targeted"])
    def test_the_whole_attack(self, loss):
        for start in ("none", "random") if loss == "ce" else ("random",):
            outcome = attack_toy(bind(apgd, eps=0.01, loss=loss, start=start))
            robust = np.array(golden.GOLDEN["apgd"]["ce|Linf|0.01"]["still_correct"], bool)
            np.testing.assert_array_equal(~outcome.fooled, robust)
            assert np.all(outcome.queries[robust] == (101 if loss == "ce" else 1 + 9 * 101))
            assert np.all(outcome.queries[~robust] < (101 if loss == "ce" else 110))

    def test_checkpoints(self):
        rule = ApgdRule(IMAGES, jnp.ones(8), "linf", 0.75)
        for steps, expected in golden.GOLDEN["apgd_checkpoints"].items():
            assert [done for done, _ in rule.windows(int(steps))] == expected


class TestHalving:
    """The step, as a share of 2 eps, after given losses at the start and after each of 20 iterations."""

    def shares(self, values, steps=20):
        image = jnp.full((1, 1, 1, 1), 0.5)
        rule = ApgdRule(image, jnp.ones(1), "linf", 0.75)
        table, memory, best, shares = schedule(rule, steps), rule.memory(), None, []
        for number, value in enumerate(map(jnp.float32, values)):
            if best is None or value > best.loss:
                best = HighestLoss(image, image, value[None])
            row = ScheduleEntry(*[column[number] for column in table])
            _, memory = rule.next(row, image, image, value[None], best, memory)
            shares.append(memory.step.item() / 2)
        return shares

    def test_three_gains_of_four_are_too_few_at_rho(self):
        assert self.shares([1, 2, 3, 4, 3])[-1] == 0.5
        assert self.shares([1, 2, 3, 4, 5])[-1] == 1.0

    def test_the_first_loss_is_compared_with_zero(self):
        # Rising all the way, but below 0: three gains of four.
        assert self.shares([-5, -4, -3, -2, -1])[-1] == 0.5
        # Falling at first, but above 0: four.
        assert self.shares([5, 1, 2, 3, 4])[-1] == 1.0

    def test_a_best_loss_that_stands_still_halves_every_other_time(self):
        # Checkpoints after 4, 7, 9, 10 and 11; the start counts as a halving.
        shares = self.shares([50, *range(1, 12)])
        assert [shares[n] for n in (4, 7, 9, 10, 11)] == [1.0, 0.5, 0.5, 0.25, 0.25]


class TestLinear:
    """Where the best point of each ball is known."""

    # L1 steps come down to two pixels, no less: only where two are best they reach the optimum.
    slope = np.array([3.0, -1.0, 0.5, -3.0, 2.0, 0.1])
    images = jnp.asarray(RNG.uniform(0.4, 0.6, size=(1, *SHAPE)), jnp.float32)

    @pytest.mark.parametrize("norm", NORMS)
    def test_fooled_up_to_the_closed_form_margin(self, norm):
        gain = np.linalg.norm(self.slope, {"linf": 1, "l2": 2, "l1": np.inf}[norm])
        # One example per share of the greatest drop that the ball allows, the label ahead by just that.
        shares = np.array([0.2, 0.6, 0.9, 0.95, 1.02, 1.1, 1.5, 2.5])
        pull = np.asarray(self.images).reshape(-1) @ self.slope
        bias = jnp.float32(pull + shares * 0.1 * gain)
        images = jnp.tile(self.images, (8, 1, 1, 1))

        @jax.jit
        def outcome(eps):
            def logits_fn(x):
                return jnp.stack([bias, x.reshape(8, -1) @ jnp.float32(self.slope)], axis=1)

            return apgd(logits_fn, images, jnp.zeros(8, int), key=KEY, norm=norm, eps=eps, steps=60)

        for factor in (0.0, 0.5, 1.0, 2.0):
            found = outcome(factor * jnp.full(8, 0.1))
            np.testing.assert_array_equal(found.fooled, shares < factor)
            assert np.all(lengths(found.images - images, norm) <= factor * 0.1 * (1 + 1e-5))


FEW = {norm: bind(apgd, norm=norm, steps=8, loss="targeted", restarts=2) for norm in NORMS}


RADII = dict(zip(NORMS, (0.03, 0.06, 0.15)))


@pytest.mark.parametrize("norm", NORMS)
class TestInvariants:
    def attack(self, norm, multiples, *batch):
        return attack(bind(FEW[norm], eps=RADII[norm] * jnp.float32(multiples)), *batch)

    def test_outcome(self, norm):
        active = jnp.arange(8) < 7
        multiples = np.array([1, 1, 1, 1, 0, 2, 4, 4])
        images, fooled, queries = self.attack(norm, multiples, IMAGES, LABELS, jnp.arange(8), active)
        assert 0 < fooled.sum() < 7
        assert np.all(lengths(images - IMAGES, norm) <= RADII[norm] * multiples * (1 + 1e-5))
        assert images.min() >= 0
        assert images.max() <= 1
        np.testing.assert_array_equal(~losses.correct(network(images), LABELS), fooled)
        np.testing.assert_array_equal(images[~fooled], IMAGES[~fooled])
        most = 1 + 4 * 2 * (8 + (3 if norm == "l1" else 1))
        assert np.all(queries[:7][~fooled[:7]] == most)
        assert np.all((queries[fooled] > 1) & (queries[fooled] < most))
        assert queries[7] == 0

    def test_neither_order_nor_neighbours_matter(self, norm):
        active, indices = jnp.arange(8) < 5, jnp.arange(8) + 70
        whole = self.attack(norm, np.ones(8), IMAGES, LABELS, indices, active)
        assert 0 < whole.fooled.sum() < 5
        order = jnp.array([5, 3, 0, 4, 7, 2, 1, 6])
        permuted = self.attack(norm, np.ones(8), IMAGES[order], LABELS[order], indices[order], active[order])
        assert_same(permuted, jax.tree.map(lambda a: a[order], whole))
        padding = [a.at[5:].set(a[0]) for a in (IMAGES, LABELS, indices)]
        padded = self.attack(norm, np.ones(8), *padding, active)
        assert_same(jax.tree.map(lambda a: a[:5], padded), jax.tree.map(lambda a: a[:5], whole))


def points_of(labels=0, **options):
    """The points at which the network was called, of a sum against 0 that an attack cannot turn."""
    points = []

    def logits_fn(x):
        jax.debug.callback(lambda x: points.append(np.asarray(x)), x)
        total = jnp.sum(x, axis=(1, 2, 3))
        return jnp.stack([1 + total, 0 * total], axis=1)

    outcome_of(logits_fn, labels, **options)
    jax.effects_barrier()
    return points


class TestStart:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_random(self, norm):
        points = points_of(norm=norm, steps=2, restarts=2)
        assert len(points) == 6
        # Its longest entry, or its length, is the whole radius, save for what the box takes.
        inner = np.all((points[0] > 0) & (points[0] < 1), axis=(1, 2, 3))
        assert inner.sum() >= 3
        np.testing.assert_allclose(lengths(points[0] - IMAGES, norm)[inner], 0.1, rtol=1e-4)
        assert np.all(lengths(points[3] - points[0], "linf") > 1e-3)
        assert np.all(lengths(points[0][1:] - points[0][:-1] - IMAGES[1:] + IMAGES[:-1], "linf") > 1e-3)

    def test_none_and_given(self):
        np.testing.assert_array_equal(points_of(steps=1, start="none")[0], IMAGES)
        # A given start is projected.
        given = points_of(steps=1, start=IMAGES + 0.5)[0]
        np.testing.assert_allclose(given, jnp.minimum(IMAGES + 0.1, 1.0), atol=1e-7)

    def test_nothing_runs_on_for_fooled_ones(self):
        assert len(points_of(labels=1, steps=50, restarts=5)) == 1


class TestClasses:
    @pytest.mark.parametrize("classes", [2, 3, 4])
    def test_few(self, classes):
        def logits_fn(x):
            return network(x, classes)

        labels = jnp.argmax(logits_fn(IMAGES), axis=1)

        @jax.jit
        def outcomes(eps):
            return [apgd(logits_fn, IMAGES, labels, key=KEY, eps=eps, steps=5, loss=x) for x in ("dlr", "targeted")]

        for outcome in outcomes(0.5):
            assert outcome.fooled.sum() >= 6
        for outcome, queries in zip(outcomes(0.0), (6, 1 + (classes - 1) * 6)):
            assert not outcome.fooled.any()
            assert np.all(outcome.queries == queries)

    def test_targets_are_the_highest_others(self):
        # The next class stands still, and against it the loss would rather see the third sink: only as a target of
        # its own it rises.
        base = jnp.sum(IMAGES, axis=(1, 2, 3))

        def logits_fn(x):
            third = 0.5 + 2 * (jnp.sum(x, axis=(1, 2, 3)) - base)
            return jnp.stack([jnp.full(8, 1.0), jnp.full(8, 0.9), third, jnp.zeros(8)], axis=1)

        for targets in (1, 2):
            outcome = outcome_of(logits_fn, eps=0.15, steps=5, loss="targeted", targets=targets, start="none")
            assert outcome.fooled.tolist() == [targets == 2] * 8


class TestNotFinite:
    def test_such_logits_fool_nobody(self):
        def logits_fn(x):
            total = jnp.sum(x, axis=(1, 2, 3))
            wrong = jnp.stack([0 * total, 1 + 0 * total], axis=1)
            return wrong.at[:3, 0].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf]))

        outcome = outcome_of(logits_fn, steps=3, loss="dlr")
        assert outcome.fooled.tolist() == [False] * 3 + [True] * 5
        np.testing.assert_array_equal(outcome.images[:3], IMAGES[:3])

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_such_gradients_do_not_spread(self, norm):
        base = IMAGES.reshape(8, -1)[:, 1]

        def logits_fn(x):
            pixels = x.reshape(8, -1)
            # The root has no derivative at 0, where the first pixel of image 0 is.
            return jnp.stack([1 + 0 * jnp.sqrt(pixels[:, 0]), 0.95 + pixels[:, 1] - base], axis=1)

        assert outcome_of(logits_fn, steps=5, start="none", norm=norm).fooled[0]


class TestRandomisedNetworks:
    def test_gradients_are_averaged(self):
        # Each pass has the useful direction under noise three times its size.
        images = jnp.full((8, *SHAPE), 0.5)

        def logits_fn(x, keys):
            pixels = x.reshape(8, -1)
            noise = 3 * jax.vmap(lambda key: jax.random.normal(key, (6,)))(keys)
            rise = jnp.sum(pixels - 0.5, axis=1) + jnp.sum(noise * (pixels - jax.lax.stop_gradient(pixels)), axis=1)
            return jnp.stack([jnp.full(8, 0.55), rise], axis=1)

        counts = [outcome_of(logits_fn, images=images, steps=1, eot=n, start="none") for n in (2, 200)]
        assert counts[0].fooled.sum() < 4
        assert counts[1].fooled.all()
        assert counts[1].queries.tolist() == [400] * 8

    def test_a_network_without_noise_is_attacked_as_ever(self):
        options = {"eps": 0.03, "steps": 5, "norm": "l2", "loss": "targeted"}
        once = outcome_of(network, LABELS, **options)
        twice = outcome_of(lambda x, keys: network(x), LABELS, **options, eot=2)
        np.testing.assert_allclose(twice.images, once.images, atol=1e-5)
        np.testing.assert_array_equal(twice.queries, 2 * once.queries - 1)


class TestCompilation:
    def test_the_network_is_compiled_once(self):
        def copies(**options):
            bound = bind(apgd, eps=0.1, steps=9, **options)
            return str(jax.make_jaxpr(lambda x: bound(toy, x, TOY_LABELS, key=KEY))(TOY)).count(" tanh ")

        assert copies(restarts=3) == copies(norm="l1") == 1
        assert copies(loss="targeted", restarts=2) == 2  # the clean logits choose the targets

    def test_sweeps_compile_once(self):
        traces = []

        @jax.jit
        def sweep(bound):
            traces.append(bound)
            return bound(network, IMAGES, LABELS, key=KEY).fooled

        counts = [sweep(bind(apgd, eps=eps, rho=rho, steps=4)).sum() for eps, rho in ((0.0, 0.5), (0.4, 0.75))]
        assert counts[0] < counts[1]
        assert len(traces) == 1

    def test_no_gradient_flows_through(self):
        def total(scale):
            outcome = apgd(lambda x: scale * network(x), IMAGES * scale, LABELS, key=KEY, eps=0.1, steps=2)
            return jnp.sum(outcome.images)

        assert jax.jit(jax.grad(total))(1.0) == 0

    def test_half_precision_networks(self):
        outcome = outcome_of(lambda x: jnp.bfloat16(network(x)), LABELS, eps=0.5, steps=4)
        assert outcome.fooled.all()
        assert outcome.images.dtype == jnp.float32


class TestL1:
    images = RNG.uniform(size=(5, 4)).round(2)
    points = 2 * RNG.normal(size=(5, 4)) * np.array([1, 1, 0.4, 0.02, 1])[:, None]

    def test_projection_is_the_nearest_point(self):
        eps = np.array([0.1, 0.5, 0.9, 0.7, 3.0])
        found = np.asarray(project_l1(jnp.float32(self.points), jnp.float32(eps), jnp.float32(self.images)))
        for z, v, x, radius in zip(found, self.points, self.images, eps):
            # z = up - down, both at least 0: a smooth problem with linear constraints.
            best = minimize(
                lambda s, v=v: np.sum((s[:4] - s[4:] - v) ** 2),
                np.zeros(8),
                bounds=[(0, b) for b in (*(1 - x), *x)],
                constraints={"type": "ineq", "fun": lambda s, radius=radius: radius - s.sum()},
                options={"ftol": 1e-12, "maxiter": 500},
            ).x
            np.testing.assert_allclose(z, best[:4] - best[4:], atol=2e-5)
            assert np.abs(z).sum() <= radius + 1e-6

    def test_projection_of_many_pixels(self):
        images = jnp.asarray(RNG.uniform(size=(4, 3072)), jnp.float32)
        delta = jnp.asarray(RNG.normal(size=(4, 3072)), jnp.float32)
        z = project_l1(delta, 12.0, images)
        np.testing.assert_allclose(lengths(z, "l1"), 12.0, rtol=1e-5)
        np.testing.assert_allclose(project_l1(z, 12.0, images), z, atol=1e-6)
        assert not np.any(project_l1(delta, 0.0, images))
        # The conditions of optimality: one threshold for all pixels that are neither untouched nor at the box.
        room = jnp.where(delta > 0, 1 - images, images)
        between = (jnp.abs(z) > 0) & (jnp.abs(z) < room)
        taken = jnp.abs(delta) - jnp.abs(z)
        for row, free, cut in zip(np.asarray(taken), np.asarray(between), np.asarray(z == 0)):
            assert free.sum() > 3
            np.testing.assert_allclose(row[free], row[free].mean(), atol=1e-5)
            assert row[cut].max() <= row[free].mean() + 1e-5

    def test_phases(self):
        rule = SparseApgdRule(IMAGES, jnp.ones(8))
        assert rule.phases(100) == ((3.0, 30), (2.0, 30), (1.0, 40))
        assert rule.windows(100)[:2] == [(4, 4), (8, 4)]
        table = schedule(rule, 10)
        assert table.factor.tolist() == [3.0] * 4 + [2.0] * 4 + [1.0] * 5
        assert table.next_factor.tolist() == [3.0] * 3 + [2.0] * 4 + [1.0] * 6
        assert np.flatnonzero(table.first).tolist() == [0, 4, 8]
        assert np.flatnonzero(table.last).tolist() == [3, 7, 12]
        assert np.flatnonzero(table.counts).tolist() == [8, 9, 10, 11, 12]

    def test_the_shortest_step_and_the_next_phase(self):
        image = jnp.full((1, 2, 2, 1), 0.5)
        rule, x = SparseApgdRule(image, jnp.ones(1)), image + 0.1
        best = HighestLoss(image + 0.2, jnp.ones_like(image), jnp.ones(1))
        memory = SparseMemory(jnp.full(1, 0.12), jnp.full(1, 0.5), jnp.full(1, 4.0))
        row = ScheduleEntry(*map(jnp.array, (False, False, 1, 1.0, 1.0, True)))
        assert rule.next(row, x, best.gradient, best.loss, best, memory)[1].step == jnp.float32(0.1)
        row = row._replace(last=jnp.array(True), next_factor=jnp.array(0.4))
        np.testing.assert_allclose(rule.next(row, x, best.gradient, best.loss, best, memory)[0], image + 0.1, atol=1e-6)
        row = row._replace(next_factor=jnp.array(1.0))
        np.testing.assert_allclose(rule.next(row, x, best.gradient, best.loss, best, memory)[0], best.x, atol=1e-6)

    def test_the_rule_step_by_step(self):
        # One example in double precision, written down anew; the golden numbers have no L1 run.
        weights = [np.asarray(w, np.float64) for w in golden.WEIGHTS]
        clean, label = np.asarray(TOY[2], np.float64).transpose(2, 0, 1).ravel(), int(TOY_LABELS[2])

        def loss_and_gradient(x):
            hidden = np.tanh((4 * x - 2) @ weights[0] + weights[1][0])
            logits = hidden @ weights[2] + weights[3][0]
            p = np.exp(logits - logits.max())
            p /= p.sum()
            back = weights[2] @ (p - np.eye(10)[label])
            return -np.log(p[label]), 4 * weights[0] @ ((1 - hidden**2) * back)

        def inside(x, radius):
            v = x - clean
            size, room = np.abs(v), np.where(v > 0, 1 - clean, clean)
            low, high = -size.max(), size.max()
            for _ in range(60):
                middle = (low + high) / 2
                fits = np.clip(size - max(middle, 0), 0, room).sum() <= radius
                low, high = (low, middle) if fits else (middle, high)
            return clean + np.sign(v) * np.clip(size - max(high, 0), 0, room)

        eps = 0.5
        best = np.asarray(self.start, np.float64).transpose(2, 0, 1).ravel()
        trace = []
        for radius, steps in ((3 * eps, 15), (2 * eps, 15), (eps, 20)):
            x = inside(best, radius)
            best_loss, best_gradient = loss_and_gradient(x)
            best, gradient, step = x, best_gradient, radius
            changed = np.sum(x != clean)
            density = changed / 192 / 1.5
            trace.append(best_loss)
            for _ in range(steps):  # the window is 1 throughout
                place = min(int((1 - np.float32(density)) * 192), 191)
                signs = np.sign(gradient) * (np.abs(gradient) >= np.sort(np.abs(gradient))[place])
                x = inside(x + step * signs / np.abs(signs).sum(), radius)
                value, gradient = loss_and_gradient(x)
                trace.append(value)
                if value > best_loss:
                    best, best_loss, best_gradient = x, value, gradient
                now = np.sum(best != clean)
                density = now / 192 / 1.5
                if now / changed < 0.95:
                    step, x, gradient = radius, best, best_gradient
                else:
                    step = max(step / 1.5, radius / 10)
                changed = now

        seen = []

        def watched(x):
            jax.debug.callback(lambda z: seen.append(losses.cross_entropy(z, TOY_LABELS[2:3]).item()), toy(x))
            return toy(x)

        bound = bind(apgd, norm="l1", eps=eps, steps=50, start=self.start[None])
        outcome = jax.jit(lambda: bound(watched, TOY[2:3], TOY_LABELS[2:3], key=KEY))()
        jax.effects_barrier()
        assert not outcome.fooled[0]
        assert len(seen) == len(trace) == 53
        np.testing.assert_allclose(seen, trace, atol=2e-4)

    start = jnp.clip(TOY[2] + 0.2 * jnp.asarray(RNG.normal(size=(8, 8, 3)), jnp.float32), 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 8}, "eps=8 must be in [0, 1]; did you mean 8/255?"),
        ({"eps": -1.0, "norm": "l1"}, "eps=-1.0 must be at least 0"),
        ({"norm": "l0"}, "norm='l0' is unknown"),
        ({"loss": "drl"}, "loss='drl' is unknown; did you mean 'dlr'?"),
        ({"start": "uniform"}, "start='uniform' is unknown"),
        ({"start": IMAGES[:2]}, "start has shape (2, 2, 3, 1); give images of shape (8, 2, 3, 1)"),
        ({"start": "none", "restarts": 2}, "restarts=2 from the same start give the same result; give restarts=1"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"steps": 2, "norm": "l1"}, "steps=2 must be at least 3"),
        ({"restarts": 0}, "restarts=0 must be at least 1"),
        ({"eot": 0}, "eot=0 must be at least 1"),
        ({"rho": 1.5}, "rho=1.5 must be in [0, 1]"),
        ({"targets": 9}, "targets=9 needs loss='targeted'; with loss='ce' give one class per example"),
        ({"targets": 0, "loss": "targeted"}, "targets=0 must be at least 1"),
        ({"images": IMAGES[0]}, "images has 3 axes"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = dict(options)
    with pytest.raises(InputError, match=re.escape(message)):
        apgd(network, options.pop("images", IMAGES), LABELS, key=KEY, **options)


def test_one_class_is_refused():
    with pytest.raises(
        InputError, match=re.escape("logits of shape (8, 1) for 8 images; they must be [8, K] with K >= 2")
    ):
        apgd(lambda x: network(x, 1), IMAGES, LABELS, key=KEY, steps=1)
