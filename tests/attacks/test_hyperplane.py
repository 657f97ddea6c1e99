import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from piat_jax.attacks.hyperplane import DUAL, step_to_hyperplane
from piat_jax.core.checks import InputError
from piat_jax.core.norms import ALL_NORMS, norm

GOLDEN = json.loads((pathlib.Path(__file__).parent / "autoattack_golden.json").read_text())["projections"]
step = jax.jit(step_to_hyperplane, static_argnums=3)
each = pytest.mark.parametrize("order", ALL_NORMS)


def float64(*arrays):
    return [np.asarray(a, np.float32).astype(np.float64) for a in arrays]


def exact(t, w, gap, order):
    """One row in float64: the breakpoints of the piecewise linear equation, sorted."""
    side = np.sign(w) * np.sign(gap)
    room = np.where(side > 0, 1 - t, np.where(side < 0, t, 0.0))
    weight, needed = np.abs(w), abs(gap)
    if np.sum(weight * room) <= needed:
        return side * room
    speed = {"linf": np.sign(weight), "l2": weight}.get(order)
    if speed is None:
        d = np.zeros_like(t)
        for j in np.argsort(-weight, kind="stable"):
            d[j] = min(room[j], needed / weight[j]) if weight[j] else 0.0
            needed -= weight[j] * d[j]
        return side * d
    limits = np.where(speed > 0, room / np.where(speed > 0, speed, 1), 0.0)

    def rise(level):
        return np.sum(weight * speed * np.minimum(level, limits))

    low = 0.0
    for high in np.sort(limits):
        if rise(high) >= needed:
            slope = np.sum((weight * speed)[limits > low])
            return side * speed * np.minimum(low + (needed - rise(low)) / slope, limits)
        low = high
    raise AssertionError


def cases(n=60, d=37):
    """Rows of every kind: images with black and white pixels, zero and tiny weights, near and far planes."""
    rng = np.random.default_rng(0)
    t, w = rng.uniform(size=(n, d)), rng.normal(size=(n, d))
    t[1::3] = np.round(t[1::3])
    t[2::3] = np.where(rng.uniform(size=t[2::3].shape) < 0.3, np.round(t[2::3]), t[2::3])
    w[::4] *= rng.uniform(size=w[::4].shape) < 0.5
    w[1::4] *= 10.0 ** -rng.integers(0, 9, size=w[1::4].shape)
    w[2::4] = np.round(w[2::4])  # ties
    t, w = float64(t, w)
    up = np.sum(np.where(w > 0, w * (1 - t), -w * t), axis=1)
    down = np.sum(np.where(w > 0, -w * t, w * (1 - t)), axis=1)
    share = rng.choice([0.0, 1e-4, 0.1, 0.5, 0.9, 0.999, 1.1, 3.0], size=n)
    gap = share * np.where(rng.uniform(size=n) < 0.5, up, down)
    return *float64(t, w, gap), share


def test_golden():
    t, w = (jnp.asarray([GOLDEN[name]] * 3) for name in "tw")
    gaps = jnp.asarray(GOLDEN["b"]) - jnp.sum(w * t, axis=1)
    for order in ALL_NORMS:
        np.testing.assert_allclose(step(t, w, gaps, order), GOLDEN[order], atol=6e-6)


@each
def test_matches_float64(order):
    t, w, gap, share = cases()
    d = np.asarray(step(*map(jnp.float32, (t, w, gap)), order), np.float64)
    expected = np.stack([exact(*row, order) for row in zip(t, w, gap)])
    size = functools.partial(np.linalg.norm, ord={"linf": np.inf, "l2": 2, "l1": 1}[order], axis=1)
    # Near the last of the room a level is a small difference of large numbers; the length and the plane are not.
    np.testing.assert_allclose(size(d), size(expected), rtol=1e-4, atol=1e-7)
    scale = np.sum(np.abs(w), axis=1)
    inside = share < 1
    np.testing.assert_allclose((np.sum(w * d, axis=1) - gap)[inside] / scale[inside], 0, atol=3e-7)
    assert np.all((t + d >= -1e-7) & (t + d <= 1 + 1e-7))
    easy = (share < 0.95) | (share > 1)
    if order != "l1":  # its solution is not the only one where weights tie
        np.testing.assert_allclose(d[easy], expected[easy], atol=1e-5)
    np.testing.assert_array_equal(d[share == 0], 0)
    assert not np.any(d[w == 0])


@pytest.mark.parametrize("order", ["linf", "l1"])
def test_is_the_shortest(order):
    """Against a linear program, on 5 coordinates."""
    t, w, gap, share = (a[:12] for a in cases(12, 5))
    ours = norm(step(*map(jnp.float32, (t, w, gap)), order), order)
    for row in np.flatnonzero(share < 1):
        # Variables: d, then |d|_inf or each |d_j|, minimised.
        extra = np.ones((5, 1)) if order == "linf" else np.eye(5)
        bounds = [(-x, 1 - x) for x in t[row]] + [(0, None)] * extra.shape[1]
        program = scipy.optimize.linprog(
            np.r_[np.zeros(5), np.ones(extra.shape[1])],
            np.block([[np.eye(5), -extra], [-np.eye(5), -extra]]),
            np.zeros(10),
            [np.r_[w[row], np.zeros(extra.shape[1])]],
            [gap[row]],
            bounds,
        )
        np.testing.assert_allclose(ours[row], program.fun, rtol=1e-4, atol=1e-6)


@each
def test_tiny_and_huge_gradients(order):
    t, w, gap, share = cases()
    ordinary = step(*map(jnp.float32, (t, w, gap)), order)
    for scale in (2.0**-70, 2.0**60):
        scaled = step(*map(jnp.float32, (t, w * scale, gap * scale)), order)
        np.testing.assert_allclose(scaled[share < 0.95], ordinary[share < 0.95], atol=1e-5)


@each
def test_an_image_of_cifar(order):
    """3072 coordinates whose weights span nine decades, and a row that has another as its neighbour."""
    rng = np.random.default_rng(1)
    t, w = float64(rng.uniform(size=(2, 3072)), rng.normal(size=(2, 3072)) * 10.0 ** rng.uniform(-9, 0, (2, 3072)))
    (gap,) = float64(-0.3 * np.sum(np.abs(w), axis=1))
    d = step(*map(jnp.float32, (t, w, gap)), order)
    expected = np.stack([exact(*row, order) for row in zip(t, w, gap)])
    np.testing.assert_allclose(d, expected, atol=1e-5)
    swapped = step(*(jnp.float32(a[::-1]) for a in (t, w, gap)), order)
    np.testing.assert_array_equal(swapped[::-1], d)


@each
def test_steep_weights_take_many_rounds(order):
    """Each round uses up one coordinate: the worst case of Newton's iteration."""
    w = 2.0 ** -np.arange(24.0)[None]
    t, gap = np.zeros_like(w), np.array([2 - 2.0**-15])
    d = step(*map(jnp.float32, (t, w, gap)), order)
    np.testing.assert_allclose(d, exact(t[0], w[0], gap[0], order)[None], rtol=1e-2, atol=1e-6)
    np.testing.assert_allclose(np.sum(w * d), gap[0], rtol=1e-6)


def test_nothing_comes_of_nan_and_other_rows_do_not_notice():
    t, w, gap, _ = (np.asarray(a, np.float32) for a in cases())
    broken = w.copy()
    broken[3, 0], broken[4] = np.nan, np.inf
    for order in ALL_NORMS:
        rows = [i for i in range(60) if i not in (3, 4)]
        np.testing.assert_array_equal(
            step(t, broken, gap, order)[np.array(rows)], step(t, w, gap, order)[np.array(rows)]
        )


def test_dual_norms():
    x = np.random.default_rng(0).normal(size=(4, 9))
    for order, dual in DUAL.items():
        p = {"linf": np.inf, "l2": 2, "l1": 1}
        np.testing.assert_allclose(norm(jnp.float32(x), order), np.linalg.norm(x, p[order], axis=1), rtol=1e-6)
        assert np.isclose(1 / p[order] + 1 / p[dual], 1)


def test_unknown_norm():
    with pytest.raises(InputError, match=re.escape("order='l3' is unknown; choose one of l1, l2, linf")):
        step_to_hyperplane(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1), "l3")
