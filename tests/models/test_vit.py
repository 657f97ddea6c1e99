import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.checks import InputError
from piat_jax.core.forward import ATTENTION_GATES, make_logits_fn, with_attention_gates
from piat_jax.core.types import Variables
from piat_jax.models import create
from tests.jaxprs import equations
from tests.models.torch_reference_vit import CLASSES, OPTIONS, SOME, cotangent, drawn, images
from tests.processors import same_bits

GOLDEN = Path(__file__).parent / "golden"
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles quickly
X = images(16)


def make(name, **options):
    return create(name, num_classes=CLASSES, **{**OPTIONS[name], **options})


@functools.cache
def gradient(name, gated=False, **options):
    """Logits, and the gradient of their weighted sum by the images: with gates, or without knowing of any."""
    model = make(name, **options)

    @jax.jit
    def run(keep=None):
        logits_fn = make_logits_fn(model, Variables(drawn(model, X), {}))
        if gated:
            logits_fn = with_attention_gates(logits_fn, keep)
        logits, pullback = jax.vjp(logits_fn, jnp.asarray(X))
        return logits, pullback(jnp.asarray(cotangent(1)))[0]

    return run


@pytest.mark.parametrize(
    ("name", "at_32", "at_224", "leaves"),
    [
        ("deit_small", 21_342_346, None, 152),
        ("vit_base", 85_152_010, 86_567_656, 152),
        ("convit_small", 26_980_588, None, 180),
        ("convit_base", 85_124_394, 86_540_040, 180),
    ],
)
def test_parameter_counts(name, at_32, at_224, leaves):
    for count, size, patch_size, num_classes in ((at_32, 32, 4, 10), (at_224, 224, 16, 1000)):
        if count:
            model = create(name, num_classes=num_classes, patch_size=patch_size)
            shape = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
            params, state = jax.eval_shape(model.init, KEY, shape)
            assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
            assert len(jax.tree.leaves(params)) == leaves
            assert state == {}
            assert model.attention_blocks == 12


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_and_input_gradients_equal_timms(name):
    with np.load(GOLDEN / f"{name}.npz") as golden, jax.default_matmul_precision("highest"):
        # Without gates, and with all of them open.
        logits, plain = gradient(name)() if name == "vit" else gradient(name, gated=True)(jnp.ones(3, bool))
        gated_logits, gated = gradient(name, gated=True)(jnp.asarray(SOME))
        np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
        np.testing.assert_allclose(plain, golden["gradient"], atol=1e-6)
        # The branch detached in timm's network.
        np.testing.assert_allclose(gated, golden["gated_gradient"], atol=1e-6)
        assert np.abs(golden["gated_gradient"] - golden["gradient"]).max() > 1e-3
    np.testing.assert_array_equal(gated_logits, logits)


@pytest.mark.parametrize("name", OPTIONS)
def test_information_comes_through_attention_alone(name):
    with jax.default_matmul_precision("highest"):
        run = gradient(name, gated=True)
        plain = run(jnp.ones(3, bool))
        # ConViT's class token is only in the last block here: closed, nothing else matters.
        for keep in [(False, False, False), *([(True, True, False)] if name == "convit" else [])]:
            logits, zero = run(jnp.asarray(keep))
            np.testing.assert_array_equal(logits, plain[0])
            assert not np.any(zero)
    if name == "vit":
        with jax.default_matmul_precision("highest"):
            same_bits(gradient(name)(), plain, atol=1e-6)


def test_remat_and_bfloat16_change_memory_and_precision_only():
    with jax.default_matmul_precision("highest"):
        logits, plain = gradient("vit")()
        half, half_plain = gradient("vit", dtype="bfloat16", remat=True)()
    assert {half.dtype, half_plain.dtype} == {jnp.dtype("float32")}
    for found, wanted in ((half, logits), (half_plain, plain)):
        np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
        assert np.any(found != wanted)
    program = list(equations(jax.make_jaxpr(gradient("vit", dtype="bfloat16", remat=True))().jaxpr))
    assert sum(equation.primitive.name.startswith(("remat", "checkpoint")) for equation in program) >= 3
    softmax = [e for e in program if e.primitive.name == "exp" and e.outvars[0].aval.shape[-2:] == (17, 17)]
    assert len(softmax) >= 3
    assert {equation.outvars[0].aval.dtype for equation in softmax} == {jnp.dtype("float32")}


def test_normalization_belongs_to_the_model():
    model, inside = make("vit"), make("vit", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    params = drawn(model, X)
    outside = (X - np.float32([[[[0.4, 0.5, 0.6]]]])) / np.float32([[[[0.2, 0.25, 0.3]]]])
    forwards = jax.jit(lambda: [m.apply(params, {}, x, train=True)[0] for m, x in ((inside, X), (model, outside))])
    np.testing.assert_allclose(*forwards(), atol=1e-5)


def test_initialisation():
    params = jax.jit(make("convit", depth=2, local_depth=1).init)(KEY, jnp.asarray(X)).params
    attn = params["blocks_0"]["attn"]
    np.testing.assert_array_equal(attn["v"]["kernel"], np.eye(20))
    np.testing.assert_array_equal(attn["gating_param"], np.ones(5))
    # Four heads look at the places of a square of two, whose centre is at one half; the fifth is left at random.
    local = [[2 * (row - 0.5), 2 * (column - 0.5), -1] for row in (0, 1) for column in (0, 1)]
    np.testing.assert_array_equal(attn["pos_proj"]["kernel"][:, :4], np.transpose(local))
    assert np.abs(attn["pos_proj"]["kernel"][:, 4]).max() < 0.1
    for kernel in (attn["qk"]["kernel"], params["blocks_1"]["attn"]["qkv"]["kernel"], params["pos_embed"]):
        assert abs(np.std(kernel) / 0.02 - 1) < 4 / math.sqrt(2 * kernel.size)
    patches, bound = params["patch_embed"]["proj"], 1 / math.sqrt(48)
    assert 0.95 * bound < np.abs(patches["kernel"]).max() <= bound
    assert 0.5 * bound < np.abs(patches["bias"]).max() <= bound
    assert "bias" not in attn["qk"]
    assert not np.any(attn["proj"]["bias"])


@pytest.mark.parametrize(
    ("name", "options", "shape", "message"),
    [
        ("vit", {}, (1, 16, 18, 3), "patch_size=4 does not divide images of 16x18 pixels"),
        ("convit", {}, (1, 16, 12, 3), "ConViT needs a square grid, but the images have 12 patches"),
        ("vit", {"heads": 3}, (1, 16, 16, 3), "width=16 cannot be divided among heads=3"),
        ("vit", {"patch_size": 0}, (1, 16, 16, 3), "patch_size=0 must be at least 1"),
        ("convit", {"local_depth": 3}, (1, 16, 16, 3), r"local_depth=3 must be in \[0, 2\]"),
    ],
)
def test_what_does_not_fit(name, options, shape, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(make(name, **options).init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_images_of_another_size_and_gates_of_another_model():
    model = make("vit")
    variables = Variables(drawn(model, X), {})
    with pytest.raises(InputError, match="the images give 5 tokens, but the position embedding has 17"):
        jax.eval_shape(functools.partial(model.apply, *variables, train=False), X[:, :8, :8])
    with pytest.raises(InputError, match=f"{ATTENTION_GATES} have shape \\(2,\\); this model has 3"):
        jax.eval_shape(with_attention_gates(make_logits_fn(model, variables), jnp.ones(2, bool)), X)
    with pytest.raises(InputError, match="takes no option 'depth'"):
        create("vit_base", num_classes=10, depth=3)
