import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import (
    InputError,
    check_at_least,
    check_choice,
    check_images,
    check_radius,
    check_range,
    did_you_mean,
)


@pytest.mark.parametrize(
    "bad",
    [-0.1, 1.5, np.nan, np.inf, np.float32(2), np.array([0.5, 2.0]), np.array([0.5, np.nan]), jnp.array([0.5, 2.0])],
)
def test_range_refuses(bad):
    with pytest.raises(InputError, match=r"eps=.* must be in \[0, 1\]"):
        check_range("eps", bad, 0, 1)


@pytest.mark.parametrize("good", [0, 1, 0.5, np.array([0.0, 1.0]), jnp.float32(0.5), jnp.zeros(0)])
def test_range_lets_pass(good):
    check_range("eps", good, 0, 1)
    check_at_least("eps", good, 0)


def test_open_range():
    check_range("eps", 1e-9, 0, 1, open_low=True)
    for bad in (0, np.array([0.0, 1.0])):
        with pytest.raises(InputError, match=r"must be in \(0, 1\]"):
            check_range("eps", bad, 0, 1, open_low=True)


@pytest.mark.parametrize(
    ("value", "high", "hint"),
    [(8, 1, "; did you mean 8/255?"), (7.5, 1, "; did you mean 7.5/255?"), (256, 1, ""), (8, 2, "")],
)
def test_pixel_units_are_explained(value, high, hint):
    with pytest.raises(InputError, match=re.escape(f"eps={value} must be in [0, {high}]{hint}") + "$"):
        check_range("eps", value, 0, high)


def test_radius():
    check_radius("eps", np.array([0.0, 1.0]), "linf")
    check_radius("eps", np.array([0.0, 12.0]), "l1")
    with pytest.raises(InputError, match=re.escape("start_eps=8 must be in [0, 1]; did you mean 8/255?")):
        check_radius("start_eps", 8, "linf")
    for bad in (-0.1, np.nan):
        with pytest.raises(InputError, match=f"eps={bad} must be at least 0"):
            check_radius("eps", bad, "l2")


@pytest.mark.parametrize("bad", [0, 0.5, np.nan, np.array([1, 0]), jnp.array([1.0, 0.0]), jnp.nan])
def test_at_least_refuses(bad):
    with pytest.raises(InputError, match=r"steps=.* must be at least 1"):
        check_at_least("steps", bad, 1)


def test_traced_values_pass():
    def check(x):
        check_range("eps", x, 0, 1)
        check_at_least("eps", x, 0)
        return x

    assert jax.jit(check)(5.0) == 5.0
    assert jax.grad(check)(5.0) == 1.0
    assert jax.vmap(check)(jnp.full(2, -5.0)).tolist() == [-5.0, -5.0]
    jax.eval_shape(check, 5.0)


def test_choices():
    check_choice("norm", "l2", ["linf", "l2"])
    with pytest.raises(InputError, match=re.escape("norm='l_2' is unknown; did you mean 'l2'?")):
        check_choice("norm", "l_2", ["linf", "l2"])
    with pytest.raises(InputError, match=re.escape("forwards=7 is unknown; choose one of 1, 2")):
        check_choice("forwards", 7, (1, 2))
    assert did_you_mean("zzz", iter(["b", "a"])) == "; choose one of a, b"


def test_images():
    check_images("images", jnp.zeros((1, 2, 2, 3), jnp.bfloat16))
    check_images("images", np.zeros((1, 2, 2, 3), np.float64))
    with pytest.raises(InputError, match=r"x has 3 axes; give images as \[batch, height, width, channels\]"):
        check_images("x", jnp.zeros((2, 2, 3)))
    with pytest.raises(InputError, match="x has dtype uint8; give floats"):
        check_images("x", jnp.zeros((1, 2, 2, 3), jnp.uint8))
    with pytest.raises(InputError, match="x is a list of 1; give an array"):
        check_images("x", [[[[0.0]]]])
