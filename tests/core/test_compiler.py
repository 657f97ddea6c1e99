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
    assert convolved._cache_size() == 1


@pytest.fixture
def forget():
    compiler._compiler_options.cache_clear()
    yield
    compiler._compiler_options.cache_clear()


def uses_onednn(options, channels):
    fn = jax.jit(convolved.fn, static_argnames="power", compiler_options=options)
    shapes = jnp.zeros((2, 6, 6, channels)), jnp.zeros((3, 3, channels, channels))
    return "__onednn" in fn.lower(*shapes, power=2).compile().as_text()


@pytest.mark.usefixtures("forget")
def test_onednn_is_asked_for_where_it_answers():
    options = compiler._compiler_options()
    assert options in (None, compiler.ONEDNN)
    for channels in (8, 64):  # without the second option YNNPACK would take the larger one
        assert uses_onednn(compiler.ONEDNN, channels) == (options is not None)
    assert not uses_onednn(None, 64)


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("options", [{"xla_cpu_no_such_option": True}, {}], ids=["unknown", "without effect"])
def test_otherwise_the_defaults_stay(monkeypatch, options):
    monkeypatch.setattr(compiler, "ONEDNN", options)
    assert compiler._compiler_options() is None
    assert OuterJit(lambda x: x + 1)(1) == 2


@pytest.mark.usefixtures("forget")
def test_a_flag_of_the_user_decides(monkeypatch):
    probed = []
    monkeypatch.setattr(jax, "jit", lambda fn, **options: probed.append(fn))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_onednn_custom_call=false")
    assert compiler._compiler_options() is None
    assert not probed
