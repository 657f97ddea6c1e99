import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from piat_jax.programs.cpu import options as compiler
from piat_jax.programs.jit import program_jit


@program_jit(static_argnames="power")
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
    compiler.compiler_options.cache_clear()
    yield
    compiler.compiler_options.cache_clear()


def compiled_text(options, channels):
    fn = jax.jit(convolved.fn, static_argnames="power", compiler_options=options)
    shapes = jnp.zeros((2, 6, 6, channels)), jnp.zeros((3, 3, channels, channels))
    return fn.lower(*shapes, power=2).compile().as_text()


@pytest.mark.usefixtures("forget")
def test_onednn_is_asked_for_where_it_answers_and_otherwise_not_ynnpack_of_an_old_version():
    options = compiler.compiler_options()
    answers = options == compiler.ONEDNN
    assert answers or options == (compiler.NO_YNNPACK if jax.__version_info__ < (0, 11) else None)
    for channels in (8, 64):  # without the second option YNNPACK would take the larger one
        assert ("__onednn" in compiled_text(compiler.ONEDNN, channels)) == answers
    assert "__onednn" not in compiled_text(None, 64)
    if options:
        assert "__ynn" in compiled_text(None, 64)
        assert "__ynn" not in compiled_text(options, 64)


@pytest.mark.usefixtures("forget")
def test_the_answer_is_the_same_where_nothing_may_be_transferred():
    options = compiler.compiler_options()
    compiler.compiler_options.cache_clear()
    with jax.transfer_guard("disallow"):
        assert compiler.compiler_options() == options


@pytest.mark.usefixtures("forget")
def test_an_option_that_xla_does_not_know_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(compiler, "ONEDNN", {"xla_cpu_no_such_option": True})
    assert compiler.compiler_options() is None
    assert program_jit()(lambda x: x + 1)(1) == 2


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(("version", "options"), [((0, 10, 2), compiler.NO_YNNPACK), ((0, 11, 0), None)])
def test_where_onednn_does_not_answer_the_version_decides(monkeypatch, version, options):
    monkeypatch.setattr(compiler, "ONEDNN", compiler.NO_YNNPACK)  # asks for nothing that could answer
    monkeypatch.setattr(jax, "__version_info__", version)
    assert compiler.compiler_options() == options


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("name", list(compiler.ONEDNN))
def test_a_flag_of_the_user_decides(monkeypatch, name):
    probed = []
    monkeypatch.setattr(jax, "jit", lambda fn, **options: probed.append(fn))
    monkeypatch.setenv("XLA_FLAGS", f"--{name}=")
    assert compiler.compiler_options() is None
    assert not probed


@pytest.fixture
def cache(tmp_path):
    """A folder of its own for what JAX compiles; before and after it is that of all tests (conftest.py)."""
    shared = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", shared)
    compilation_cache.reset_cache()


def test_half_an_entry_in_the_cache_of_tests_is_none(cache):
    """JAX writes entries in place, and another process may be reading; the warning is no error (pyproject.toml)."""

    def compiled():
        jitted = jax.jit(lambda x: jnp.sin(x) * 3 + 1)
        return jitted(jnp.float32(2.0))

    expected = compiled()
    entries = [path for path in cache.iterdir() if path.is_file()]
    assert entries
    for path in entries:
        path.write_bytes(path.read_bytes()[:-20])
    assert compiled() == expected
