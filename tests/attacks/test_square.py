import functools
import itertools
import json
import math
import pathlib
import re
from fractions import Fraction
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import losses
from piat_jax.attacks import square_proposals as proposals
from piat_jax.attacks.square import square
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from tests.jaxprs import equations

GOLDEN = json.loads((pathlib.Path(__file__).parent / "autoattack_golden.json").read_text())
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NORMS = ("linf", "l2", "l1")
ALL, FLAT = jnp.ones(8, bool), jnp.zeros(10)


def toy():
    """The images and weights of the golden numbers."""
    n, c, h, w = np.meshgrid(*map(np.arange, (8, 3, 8, 8)), indexing="ij")
    x = 0.5 + 0.45 * np.sin(1.7 * n + 0.9 * c + 0.31 * h + 0.53 * w + 0.07 * h * w)
    i, j, k = np.arange(192)[:, None], np.arange(32), np.arange(10)
    first = 2 * np.sin(0.013 * (i + 1) * (j + 1) + 0.5 * j) / np.sqrt(192)
    second = 3 * np.cos(0.7 * (j[:, None] + 1) * (k + 1) + 0.3 * k) / np.sqrt(32)
    arrays = x.transpose(0, 2, 3, 1), first, 0.1 * np.cos(j), second, 0.02 * k
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


IMAGES, *WEIGHTS = toy()
LABELS = jnp.array(GOLDEN["labels"])
TRACES = []


def network(offset=FLAT, gain=1.0):
    first, first_bias, second, second_bias = WEIGHTS

    def logits_fn(x):
        flat = (4 * x - 2).transpose(0, 3, 1, 2).reshape(len(x), -1)
        return gain * (jnp.tanh(flat @ first + first_bias[None]) @ second + (second_bias + offset)[None])

    return logits_fn


@jax.jit
def _run(attack, images, labels, eps, queries, indices, active, offset, p_init, gain):
    TRACES.append(attack.static)
    options = {"eps": eps, "queries": queries, "indices": indices, "active": active, "p_init": p_init}
    return attack(network(offset, gain), images, labels, key=KEY, **options)


def run(
    norm="linf",
    eps=0.01,
    queries=300,
    images=IMAGES,
    labels=LABELS,
    indices=None,
    active=ALL,
    offset=FLAT,
    p_init=0.8,
    gain=1.0,
):
    """One compilation for each norm serves nearly all tests."""
    eps = jnp.broadcast_to(jnp.asarray(eps, jnp.float32), 8)
    indices = jnp.arange(8) if indices is None else indices
    return _run(bind(square, norm=norm), images, labels, eps, queries, indices, active, offset, p_init, gain)


@jax.jit
def wrong(images, labels=LABELS):
    return ~losses.correct(network()(images), labels)


def lengths(delta, norm):
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    return np.linalg.norm(np.asarray(delta, np.float64).reshape(len(delta), -1), order, axis=1)


RADII = {"linf": 0.02, "l2": 0.25, "l1": 3.0}
each_norm = pytest.mark.parametrize("norm", NORMS)


class TestSchedule:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("side", [28, 32, 224])
    def test_sides(self, norm, side):
        shares = [proposals.pixel_share(i, 5000, 0.8) for i in GOLDEN["square"]["starts_at_iter"]]
        sides = [int(proposals.window_side(share, (side, side, 3), norm)) for share in shares]
        assert sides == GOLDEN["square"][f"{norm}_size_{side}"]

    def test_halvings(self):
        shares = np.asarray(jax.vmap(lambda i: proposals.pixel_share(i, 5000, 1.0))(jnp.arange(9000)))
        starts = [*GOLDEN["square"]["starts_at_iter"], 6001, 8001, 9000]
        for level, (start, end) in enumerate(itertools.pairwise(starts)):
            assert np.all(shares[start:end] == 2.0**-level)

    @pytest.mark.parametrize("queries", [1, 7, 500, 5000, 12345])
    def test_rescaled(self, queries):
        iterations = np.unique(np.linspace(0, queries - 1, 500).astype(int))
        of_10000 = jnp.array([Fraction(int(i) * 10000, queries).__floor__() for i in iterations])
        plain = jax.vmap(lambda i: proposals.pixel_share(i, 10000, 0.8))(of_10000)
        rescaled = jax.vmap(lambda i: proposals.pixel_share(i, queries, 0.8, rescale_schedule=True))
        np.testing.assert_array_equal(plain, rescaled(jnp.asarray(iterations)))

    @pytest.mark.parametrize("side", [5, 16, 45, 64, 75, 96, 299, 384])
    def test_float32_rounds_like_float64(self, side):
        shares = 0.8 / 2.0 ** np.arange(10)
        shape = (side, side + 1, 3)
        ours = jax.vmap(lambda share: proposals.window_side(share, shape, "linf"))(jnp.asarray(shares, jnp.float32))
        expected = [min(max(round(math.sqrt(share * side * (side + 1))), 1), side) for share in shares]
        assert ours.tolist() == expected

    def test_oblong_and_tiny_images(self):
        assert int(proposals.window_side(jnp.float32(0.8), (4, 100, 3), "linf")) == 4
        assert int(proposals.window_side(jnp.float32(0.8), (4, 100, 3), "l2")) == 4
        assert int(proposals.window_side(jnp.float32(1e-4), (2, 2, 1), "linf")) == 1
        assert int(proposals.window_side(jnp.float32(1e-4), (2, 2, 1), "l2")) == 2


def pyramid(rows, columns):
    """As the facts say it: squares of side 2k + 1 around the centre, of height 1 / (k + 1)^2, laid on each other."""
    mass = np.zeros((rows, columns))
    for k in range(max(rows, columns) // 2 + 1):
        top, left = rows // 2 - k, columns // 2 - k
        mass[max(top, 0) : top + 2 * k + 1, max(left, 0) : left + 2 * k + 1] += 1 / (k + 1) ** 2
    return mass


def size_of(x, norm):
    return np.abs(x).sum() if norm == "l1" else np.sqrt((x * x).sum())


def bump(side, norm="l2"):
    halves = [pyramid(side // 2, side), -pyramid(side - side // 2, side)]
    eta = np.concatenate([half / max(size_of(half, norm), 1e-30) for half in halves])
    return eta / size_of(eta, norm)


class TestTile:
    tile = staticmethod(jax.jit(proposals.tile, static_argnames=("room", "norm")))

    def test_golden(self):
        for side in (3, 5):
            expected = np.zeros((29, 29))
            expected[:side, :side] = GOLDEN["square"][f"eta{side}"]
            np.testing.assert_allclose(self.tile(side, room=29, norm="l2"), expected, atol=6e-5)

    def test_distances_are_of_floats(self):
        """On an H200, jax 0.11.2 computes max(|a|, |b|) of integers as max(a, |b|)."""
        program = jax.make_jaxpr(lambda side: proposals.tile(side, 29, "l2"))(3)
        sizes = [equation.invars[0].aval.dtype for equation in equations(program) if equation.primitive.name == "abs"]
        assert sizes == [np.float32] * 2

    @pytest.mark.parametrize("norm", ["l2", "l1"])
    @pytest.mark.parametrize("side", [1, 2, 3, 4, 9, 14, 29])
    def test_formula(self, side, norm):
        ours = np.asarray(self.tile(side, room=29, norm=norm))
        assert not np.any(ours[side:])
        assert not np.any(ours[:, side:])
        ours = ours[:side, :side]
        np.testing.assert_allclose(ours, bump(side, norm), rtol=2e-5)
        upper, lower = ours[: side // 2], ours[side // 2 :]
        assert np.all(upper > 0)
        assert np.all(lower < 0)
        if side > 1:
            share = 1 / 2 if norm == "l1" else math.sqrt(1 / 2)
            np.testing.assert_allclose([size_of(upper, norm), size_of(lower, norm)], share, rtol=1e-5)

    @pytest.mark.parametrize("norm", ["l2", "l1"])
    @pytest.mark.parametrize("shape", [(32, 32, 1), (8, 8, 3), (16, 12, 2), (12, 31, 1), (3, 4, 2)])
    def test_tiling(self, shape, norm):
        height, width, channels = shape
        draws = RNG.uniform(size=(2, proposals.tiling_draws(shape))).astype(np.float32)
        side = max(min(shape[:2]) // 5, 1)
        offset = max(min(shape[:2]) - 5 * side, 0) // 2
        grid = draws.reshape(2, height // side, width // side, channels + 1)
        expected = np.zeros((2, height + 2 * side, width + 2 * side, channels))  # what lies outside is cut off
        for n, i, j in np.ndindex(grid.shape[:3]):
            eta = bump(side, norm).T if grid[n, i, j, 0] < 0.5 else bump(side, norm)
            rows, columns = (slice(offset + k * side, offset + (k + 1) * side) for k in (i, j))
            expected[n, rows, columns] = eta[..., None] * np.where(grid[n, i, j, 1:] < 0.5, -1, 1)
        ours = jax.jit(proposals.tiling, static_argnums=(1, 2))(draws, shape, norm)
        np.testing.assert_allclose(ours, expected[:, :height, :width], atol=1e-6)


class TestMoveMass:
    move = staticmethod(jax.jit(proposals.move_mass, static_argnames="norm"))

    @pytest.mark.parametrize("norm", ["l2", "l1"])
    @pytest.mark.parametrize("side", [3, 5])
    def test_against_loops(self, norm, side):
        height, width, channels = shape = (6, 9, 2)
        delta = RNG.normal(size=(6, *shape)).astype(np.float32)
        delta[0, :, :, 1] = 0  # a channel without any mass
        eps = np.array([0.5, 1, 1, 1.5, 2, 1]) * [size_of(d, norm) for d in delta]
        draws = RNG.uniform(size=(6, 5 + channels)).astype(np.float32)
        draws[1, 2:4] = draws[1, :2]  # the same window twice
        expected = delta.astype(np.float64)
        for n, (new, old) in enumerate(zip(expected, delta.astype(np.float64))):
            corners = np.floor(draws[n, :4] * np.array([height - side, width - side] * 2)).astype(int)
            first, second = (np.s_[r : r + side, c : c + side] for r, c in (corners[:2], corners[2:]))
            union = np.zeros((height, width), bool)
            union[first] = union[second] = True
            whole = size_of(old, norm)
            new[second] = 0
            for c in range(channels):
                eta = bump(side, norm).T if draws[n, 4] < 0.5 else bump(side, norm)
                eta = eta * (-1 if draws[n, 5 + c] < 0.5 else 1)
                eta = eta + old[first][..., c] / (size_of(old[first][..., c], norm) + 1e-12)
                in_union = size_of(old[union][:, c], norm)
                if norm == "l1":
                    budget = max(eps[n] - whole, 0) / channels + in_union
                else:
                    budget = math.sqrt(max(eps[n] ** 2 - whole**2, 0) / channels + in_union**2)
                new[first][..., c] = eta * budget / size_of(eta, norm)
            if eps[n] >= whole:  # nothing is lost
                np.testing.assert_allclose(size_of(new, norm), eps[n])
        ours = self.move(draws, delta, jnp.asarray(eps, jnp.float32)[:, None, None, None], jnp.int32(side), norm=norm)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_projection_onto_l1_ball_and_box():
    x = RNG.uniform(size=(5, 2, 3, 2))
    x[0, 0] = 1
    delta = RNG.normal(size=x.shape)
    eps = np.array([0.3, 1.0, 2.0, 100.0, 0.0])
    radius = jnp.asarray(eps, jnp.float32)[:, None, None, None]
    project = jax.jit(proposals.into_ball_and_box, static_argnames="norm")
    ours = project(jnp.asarray(x, jnp.float32), jnp.asarray(delta, jnp.float32), radius, norm="l1")
    moved = np.asarray(ours, np.float64) - x
    assert np.all(lengths(moved, "l1") <= eps + 1e-5)
    np.testing.assert_allclose(lengths(moved, "l1")[:3], eps[:3], rtol=1e-5)
    np.testing.assert_allclose(ours[3], np.clip(x[3] + delta[3], 0, 1), atol=1e-6)  # the box alone
    # The nearest point z of a convex set: <v - z, other - z> <= 0 for all other points of it.
    for _ in range(200):
        other = np.clip(x + delta * RNG.uniform(size=x.shape) ** 4, 0, 1) - x
        other *= np.minimum(1, eps / np.maximum(lengths(other, "l1"), 1e-12))[:, None, None, None]
        assert np.all(((delta - moved) * (other - moved)).sum((1, 2, 3)) <= 1e-5)


class TestGolden:
    """The minimal distances FAB-T found with the reference code bound what any attack can do."""

    @pytest.mark.parametrize(("norm", "golden", "enough"), [("linf", "Linf", 2), ("l2", "L2", 3)])
    def test_between_the_distances(self, norm, golden, enough):
        np.testing.assert_array_equal(np.argmax(network()(IMAGES), axis=1), LABELS)
        table = GOLDEN["fab_t_distance"]
        nearest = np.min([v for name, v in table.items() if name.endswith(golden) and name[:4] == "rank"], axis=0)
        assert not np.any(run(norm, 0.97 * nearest, 1000).fooled)
        assert np.all(run(norm, enough * nearest, 1000).fooled)


@each_norm
class TestInvariants:
    def test_outcome(self, norm):
        scale = jnp.array([0.0, 0.05, 0.2, 0.4, 0.6, 1.0, 1.5, 1.5])
        eps = RADII[norm] * scale
        outcome = run(norm, eps, p_init=0.5)
        assert 2 <= np.sum(outcome.fooled) <= 7
        np.testing.assert_array_equal(outcome.fooled, wrong(outcome.images))
        assert np.all(lengths(outcome.images - IMAGES, norm) <= eps * (1 + 1e-6) + 1e-7)
        assert outcome.images.min() >= 0
        assert outcome.images.max() <= 1
        np.testing.assert_array_equal(outcome.images[~outcome.fooled], IMAGES[~outcome.fooled])
        assert np.all(outcome.queries[~outcome.fooled] == 301)
        assert np.all(outcome.queries[outcome.fooled] < 301)

    def test_more_radius_fools_more(self, norm):
        counts = [int(run(norm, RADII[norm] * scale).fooled.sum()) for scale in (0.1, 0.5, 1.0, 2.0)]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1]

    def test_the_batch_plays_no_part(self, norm):
        eps = RADII[norm] * jnp.linspace(0.3, 1.0, 8)
        outcome = run(norm, eps)
        assert 0 < np.sum(outcome.fooled) < 8
        order = jnp.array([3, 0, 7, 1, 6, 2, 5, 4])
        permuted = run(norm, eps[order], images=IMAGES[order], labels=LABELS[order], indices=order)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), outcome, permuted)
        # Padding: other images in the inactive rows, and others' work ends at other times.
        active = jnp.array([True, False, True, True, False, True, False, True])
        images = jnp.where(active[:, None, None, None], IMAGES, 0.3)
        padded = run(norm, eps, images=images, active=active)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[active], b[active]), outcome, padded)
        assert not np.any(padded.fooled[~active])
        assert not np.any(padded.queries[~active])
        np.testing.assert_array_equal(padded.images[~active], images[~active])

    def test_randomness_comes_from_the_index(self, norm):
        eps = RADII[norm]
        assert np.any(run(norm, eps).queries != run(norm, eps, indices=jnp.arange(8) + 8).queries)

    def test_few_queries(self, norm):
        outcome = run(norm, 0.01 * RADII[norm], queries=0)
        assert np.all(outcome.queries == 1)
        for queries in (0, 1):
            outcome = run(norm, 8 * RADII[norm], queries=queries)
            assert np.any(outcome.fooled)
            assert outcome.queries.max() <= queries + 1
            np.testing.assert_array_equal(outcome.fooled, wrong(outcome.images))
        # What more queries find includes what fewer found.
        few, many = run(norm, RADII[norm], queries=60), run(norm, RADII[norm], queries=300)
        assert np.sum(few.fooled) < np.sum(many.fooled)
        assert np.all(many.fooled[few.fooled])
        np.testing.assert_array_equal(few.images[few.fooled], many.images[few.fooled])

    def test_logits_that_are_not_finite_fool_nobody(self, norm):
        for value in (jnp.nan, jnp.inf, -jnp.inf):
            outcome = run(norm, RADII[norm], 20, offset=FLAT.at[3].set(value))
            assert not np.any(outcome.fooled)
            assert np.all(outcome.queries == 21)


def test_ties_are_judged_by_argmax():
    outcome = run("linf", queries=4, gain=0.0, labels=jnp.arange(8))
    assert outcome.fooled.tolist() == [False] + [True] * 7
    assert outcome.queries.tolist() == [5] + [1] * 7


def test_sweeps_compile_once():
    run("linf")
    before = len(TRACES)
    run("linf", eps=0.5, queries=77, p_init=0.3, active=ALL.at[2].set(False))
    assert len(TRACES) == before


def test_no_gradient_flows_through():
    def loss(offset, images):
        return jnp.sum(square(network(offset), images, LABELS, key=KEY, queries=2).images ** 2)

    through = jax.jit(jax.grad(loss, (0, 1)))(FLAT, IMAGES)
    assert not any(map(np.any, through))


class TestLinearModel:
    """With two classes the best point under "linf" is known; single pixels, in the end, reach all of it."""

    # The last row and column are changed only by windows of the whole image, so nothing hangs on them.
    w = np.pad(RNG.normal(size=(4, 6)), ((0, 1), (0, 1))).astype(np.float32)

    def test_reaches_the_optimum_and_no_more(self):
        images = jnp.full((6, 5, 7, 1), 0.5)
        reach = jnp.array([0.5, 0.9, 0.999, 1.001, 1.1, 2.0])  # the margin, over the most that eps can take off it

        def logits_fn(x):
            fall = jnp.sum((x[..., 0] - 0.5) * self.w[None], (1, 2)) + 0.1 * reach * np.abs(self.w).sum()
            return jnp.stack([fall, jnp.zeros(len(x))], axis=1)

        attack = bind(square, eps=0.1, queries=2500)
        outcome = jax.jit(lambda: attack(logits_fn, images, jnp.zeros(6, int), key=KEY))()
        assert outcome.fooled.tolist() == [True] * 3 + [False] * 3
        pixels = np.asarray(outcome.images)[2, :4, :6, 0]
        np.testing.assert_allclose(pixels, 0.5 - 0.1 * np.sign(self.w[:4, :6]), atol=1e-6)


class TestTried:
    """Every image the model is asked about, replayed: what is tried, and what is kept."""

    x = RNG.uniform(size=(4, 6, 8, 2)).astype(np.float32)
    weights = jnp.asarray(RNG.normal(size=(96, 3)), jnp.float32)
    labels = jnp.array([0, 1, 2, 0])

    seen: ClassVar[list] = []

    @functools.partial(jax.jit, static_argnames=("self", "norm"))
    def jitted(self, x, lead, eps, queries, restarts, norm):
        def logits_fn(x):
            # A lead of more than 2 is out of reach of the sines.
            logits = jnp.sin(x.reshape(len(x), -1) @ self.weights) + lead * jax.nn.one_hot(self.labels, 3)
            jax.debug.callback(
                lambda *values: TestTried.seen.append([*map(np.asarray, values)]), x, logits, ordered=True
            )
            return logits

        options = {"eps": eps, "queries": queries, "restarts": restarts, "norm": norm}
        return square(logits_fn, x, self.labels, key=KEY, **options)

    def tried(self, eps, queries, restarts=1, lead=2.1, norm="linf"):
        self.seen.clear()
        outcome = jax.block_until_ready(TestTried.jitted(TestTried, self.x, lead, eps, queries, restarts, norm))
        jax.effects_barrier()
        return outcome, [*self.seen]

    def margins(self, logits):
        of_label = np.take_along_axis(logits, np.asarray(self.labels)[:, None], 1)[:, 0]
        others = np.where(np.arange(3) == np.asarray(self.labels)[:, None], -np.inf, logits)
        return of_label - others.max(1)

    def test_linf(self):
        outcome, seen = self.tried(eps=0.05, queries=120)
        assert not np.any(outcome.fooled)
        assert len(seen) == 121
        low, high = np.clip(self.x - 0.05, 0, 1), np.clip(self.x + 0.05, 0, 1)
        best, best_margin = seen[0][0], self.margins(seen[0][1])
        ups = np.isclose(best, high, atol=1e-7)
        assert np.all(ups | np.isclose(best, low, atol=1e-7))
        assert np.all(ups == ups[:, :1])  # stripes
        assert 0.2 < ups.mean() < 0.8
        ends = []
        for iteration, (x, logits) in enumerate(seen[1:]):
            side = int(proposals.window_side(proposals.pixel_share(iteration, 120, 0.8), x.shape[1:], "linf"))
            for n, (new, old) in enumerate(zip(x, best)):
                changed = np.argwhere(np.any(new != old, axis=2))
                if len(changed):
                    extent = changed.max(0) - changed.min(0) + 1
                    assert np.all(extent <= side)
                    ends.append((iteration, n, *changed.max(0)))
                for c in range(2):
                    where = new[..., c] != old[..., c]
                    edges = [np.allclose(new[..., c][where], e[n][..., c][where], atol=1e-7) for e in (low, high)]
                    assert any(edges)  # one sign for each channel
            margin = self.margins(logits)
            take = (margin < best_margin) | (margin <= 0)
            best, best_margin = np.where(take[:, None, None, None], x, best), np.where(take, margin, best_margin)
        assert np.all(best_margin < self.margins(seen[0][1]))  # the search gets somewhere
        # Whole-image windows are tried in iteration 10 for the last time: the sides are 6, 4 and 3 of 6.
        assert max(end[0] for end in ends if end[2] == 5) == 10
        # The examples of an iteration do not share their window, and the last place of one is never drawn.
        late = [end for end in ends if end[0] >= 51]
        assert any(a[0] == b[0] and a[2:] != b[2:] for a, b in itertools.pairwise(late))
        assert np.max(late, axis=0)[2:].tolist() == [6 - 2, 8 - 2]

    @pytest.mark.parametrize("norm", ["l2", "l1"])
    def test_what_is_tried_uses_the_whole_radius(self, norm):
        eps = {"l2": 0.3, "l1": 0.6}[norm]
        self.x = np.clip(self.x, 0.45, 0.55)  # far from the box
        _, seen = self.tried(eps=eps, norm=norm, queries=30, restarts=2)
        assert len(seen) == 62
        for x, _ in seen:
            np.testing.assert_allclose(lengths(x - self.x, norm), eps, rtol=1e-4)
        best, best_margin = seen[0][0], self.margins(seen[0][1])
        for x, logits in seen[1:31]:
            margin = self.margins(logits)
            take = (margin < best_margin) | (margin <= 0)
            best, best_margin = np.where(take[:, None, None, None], x, best), np.where(take, margin, best_margin)
        assert np.all(best_margin < self.margins(seen[0][1]))
        # The second restart begins anew, from another start.
        assert np.all(lengths(seen[31][0] - seen[0][0], norm) > 0.1 * eps)

    def test_restarts_and_early_end(self):
        options = {"eps": 0.3, "queries": 3, "lead": 1.2}
        one, _ = self.tried(**options)
        many, seen = self.tried(**options, restarts=40)
        assert np.sum(one.fooled) < np.sum(many.fooled) == 4
        np.testing.assert_array_equal(one.images[one.fooled], many.images[one.fooled])
        assert len(seen) == many.queries.max() < 160  # no forward after the last has fallen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 8}, "eps=8 must be in [0, 1]; did you mean 8/255?"),
        ({"eps": -0.1, "norm": "l2"}, "eps=-0.1 must be at least 0"),
        ({"norm": "l3"}, "norm='l3' is unknown; "),
        ({"queries": -1}, "queries=-1 must be at least 0"),
        ({"p_init": 0.0}, "p_init=0.0 must be in (0, 1]"),
        ({"restarts": 0}, "restarts=0 must be at least 1"),
        ({"images": IMAGES[0]}, "images has 3 axes"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = dict(options)
    with pytest.raises(InputError, match=re.escape(message)):
        square(network(), options.pop("images", IMAGES), LABELS, key=KEY, **options)


def test_a_tie_is_left_by_moves_that_gain_nothing():
    """At margin 0 the label still leads. Four pixels must be up for another class, and no single move does it."""

    def plateau(x):
        up = jnp.sum(x[:, :2, :2, 0] > 0.5, (1, 2))
        return jnp.stack([jnp.full(len(x), 0.5), jnp.where(up == 4, 0.6, 0.5)], axis=1)

    images = jnp.full((12, 3, 3, 1), 0.5)
    options = {"eps": 0.1, "p_init": 0.1}  # windows of one pixel
    start = square(plateau, images, jnp.zeros(12, int), key=KEY, queries=0, **options)
    assert 0 < start.fooled.sum() < 12
    assert np.all(square(plateau, images, jnp.zeros(12, int), key=KEY, queries=300, **options).fooled)
