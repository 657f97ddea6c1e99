import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core import compiler
from piat_jax.core.compiler import OuterJit


@functools.partial(OuterJit, static_argnames="power")
def convolved(x, kernel, *, power):
    """A convolution and a product in a loop, as attacks have them."""

    def body(_, x):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(y) ** power

    return jax.lax.fori_loop(0, 3, body, x)


def inputs():
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, 6, 6, 4), (3, 3, 4, 4)))


def test_it_computes_the_same_and_compiles_once():
    x, kernel = inputs()
    assert convolved.__doc__.startswith("A convolution")
    np.testing.assert_allclose(convolved(x, kernel, power=2), jax.jit(convolved.fn, static_argnames="power")(
        x, kernel, power=2), rtol=1e-4, atol=1e-6)  # fmt: skip
    convolved(x + 1, kernel, power=2)
    assert convolved.compiled._cache_size() == 1


@pytest.fixture
def forget():
    compiler._compiler_options.cache_clear()
    yield
    compiler._compiler_options.cache_clear()


@pytest.mark.usefixtures("forget")
def test_options_that_do_not_exist_are_left_out(monkeypatch):
    assert compiler._compiler_options() == compiler.ONEDNN
    compiler._compiler_options.cache_clear()
    monkeypatch.setattr(compiler, "ONEDNN", {"xla_cpu_no_such_option": True})
    assert compiler._compiler_options() is None
    assert OuterJit(lambda x: x + 1)(1) == 2
