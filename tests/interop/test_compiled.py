"""Whole functions out: JAX's export format and ONNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from piat_jax.core.checks import InputError
from piat_jax.core.forward import make_logits_fn
from piat_jax.interop import read_exported, write_exported, write_onnx
from piat_jax.models import LinenModel
from tests.models import conv_golden
from tests.models.torch_reference import images

X = np.asarray(images(8, 8), np.float32)
SHAPE = X.shape[1:]


def logits_fn(name):
    model, variables = conv_golden.small(name)
    normalised = LinenModel(model.module.clone(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)))
    function = make_logits_fn(normalised, variables)
    return lambda x: function(x)


def test_exported_function_takes_any_batch_and_has_a_gradient(tmp_path):
    pytest.importorskip("flatbuffers")
    ours = logits_fn("dm_preact")
    write_exported(tmp_path / "net.jax", ours, SHAPE)
    theirs = read_exported(tmp_path / "net.jax")
    for x in (X, X[:1]):
        np.testing.assert_allclose(theirs(x), jax.jit(ours)(x), rtol=1e-5, atol=1e-6)
    got, expected = (jax.jit(jax.grad(lambda x: jnp.sum(f(x) * conv_golden.WEIGHTS)))(X) for f in (theirs, ours))  # noqa: B023
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    good = (tmp_path / "net.jax").read_bytes()
    for place in range(len(good) // 9, len(good), len(good) // 9):
        flipped = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        (tmp_path / "net.jax").write_bytes(flipped)
        with pytest.raises(InputError, match="is damaged: its checksum differs; write it again"):
            read_exported(tmp_path / "net.jax")
    # As JAX alone writes it, and as JAX alone reads ours.
    (tmp_path / "net.jax").write_bytes(good.rpartition(b"piat_jax.crc32=")[0])
    for function in (read_exported(tmp_path / "net.jax"), export.deserialize(bytearray(good)).call):
        np.testing.assert_array_equal(function(X[:1]), theirs(X[:1]))
    (tmp_path / "net.jax").write_bytes(b"something else")
    for name in ("net.jax", "absent"):
        with pytest.raises(InputError, match=r"is not an exported function|is not a file"):
            read_exported(tmp_path / name)


class TestOnnx:
    @pytest.fixture
    def run(self, tmp_path):
        pytest.importorskip("onnx")
        onnxruntime = pytest.importorskip("onnxruntime")

        def run(function, x, shape=None, **options):
            path = tmp_path / "net.onnx"
            write_onnx(path, function, shape or x.shape[1:], **options)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            return session.run(["logits"], {"images": x})[0]

        return run

    @pytest.mark.parametrize("name", ["resnet", "dm_wide_resnet"])
    def test_networks(self, run, name):
        ours = logits_fn(name)
        expected = jax.jit(ours)(X)
        np.testing.assert_allclose(run(ours, X), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(run(ours, X[:1]), expected[:1], rtol=1e-5, atol=1e-5)
        got = run(ours, X.transpose(0, 3, 1, 2).copy(), SHAPE, nchw=True)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

    def test_what_vision_transformers_are_made_of(self, run):
        weights = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)

        def attention(x):
            tokens = x.reshape(x.shape[0], -1, 12)
            first = jnp.broadcast_to(jnp.asarray(weights[:1, None]), (x.shape[0], 1, 12))
            tokens = jnp.concatenate([first, tokens], axis=1)
            centred = tokens - tokens.mean(-1, keepdims=True)
            tokens = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
            q, k, v = jnp.moveaxis((tokens @ weights).reshape(x.shape[0], -1, 3, 2, 2), 2, 0)
            scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), axis=-1)
            mixed = jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(x.shape[0], -1, 4)
            return jax.nn.gelu(mixed, approximate=False)[:, 0] * jax.nn.sigmoid(weights[0, :1]).reshape(1, 1)

        np.testing.assert_allclose(run(attention, X), jax.jit(attention)(X), rtol=1e-5, atol=1e-5)

    def test_what_is_not_covered_is_said(self, run):
        with pytest.raises(InputError, match="operation 'sort' is not supported in ONNX export"):
            run(lambda x: jnp.sort(x.reshape(x.shape[0], -1), axis=-1), X)
