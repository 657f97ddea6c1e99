import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError


def scaled(x, *, eps=1.0, power=1, inner=None, shift=0.0):
    y = eps * x**power + shift
    return y if inner is None else inner(y)


def counted(calls):
    """A jitted function that takes a bound one as an argument and counts its traces."""

    @jax.jit
    def run(fn, x):
        calls.append(fn)
        return fn(x)

    return run


def test_calls_with_what_was_bound_unless_told_otherwise():
    fn = bind(scaled, eps=2.0, power=3)
    assert fn(2.0) == 16.0
    assert fn(2.0, power=1, shift=1.0) == 5.0
    assert repr(fn) == "scaled(eps=2.0, power=3)"


def test_binding_further_and_nesting():
    fn = bind(bind(scaled, eps=2.0, power=3), power=2, inner=bind(scaled, shift=1.0))
    assert fn(3.0) == 19.0
    assert fn.fn is scaled


def test_equal_bindings_share_one_compilation():
    calls = []
    run = counted(calls)
    make = functools.partial(bind, scaled, power=2, inner=bind(scaled, shift=1.0))
    assert [run(make(eps=2.0), 3.0).item() for _ in range(3)] == [19.0] * 3
    assert make(eps=2.0) == make(eps=2.0)
    assert make(eps=2.0) != make(eps=3.0)
    assert len(calls) == 1


@pytest.mark.parametrize("number", [float, np.float32, np.float64, jnp.float32], ids=lambda t: t.__name__)
def test_sweeps_over_numbers_compile_once(number):
    calls = []
    run = counted(calls)
    values = [run(bind(scaled, eps=number(eps), inner=bind(scaled, shift=number(eps))), 3.0) for eps in (0.5, 1.0, 2.0)]
    np.testing.assert_allclose(values, [2.0, 4.0, 8.0])
    assert len(calls) == 1


def test_arrays_are_traced_and_other_values_static():
    calls = []
    run = counted(calls)
    x = jnp.array([1.0, 2.0])
    for eps in (np.array([1.0, 3.0], np.float32), np.array([2.0, 5.0], np.float32)):
        np.testing.assert_allclose(run(bind(scaled, eps=eps, power=2), x), eps * np.square(x))
    assert len(calls) == 1
    run(bind(scaled, eps=eps, power=3), x)
    assert len(calls) == 2


def test_gradients_reach_what_was_bound():
    gradient = jax.grad(lambda fn: fn(3.0))(bind(scaled, eps=2.0, power=2))
    assert gradient.traced == {"eps": 9.0}


def test_unknown_arguments_are_refused_when_binding():
    with pytest.raises(InputError, match=r"scaled takes no argument 'pwer'; did you mean 'power'\?"):
        bind(scaled, pwer=2)
    with pytest.raises(InputError, match="takes no argument 'x'"):
        bind(bind(scaled, eps=1.0), x=2)
