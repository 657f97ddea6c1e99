import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import models
from piat_jax.core.checks import InputError
from piat_jax.models import MLP, LinenModel, ResNet, WideResNet, create
from tests.models.torch_reference import filled

KEY = jax.random.key(0)
NORMALIZATION = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
TINY = {
    "small_resnet": functools.partial(create, "small_resnet", num_classes=3, width=4, stage_sizes=(1, 1)),
    "preact_resnet": lambda **options: LinenModel(
        ResNet(num_classes=3, width=4, stage_sizes=(1, 1), pre_activation=True, **options)
    ),
    "wide_resnet": functools.partial(create, "wide_resnet", num_classes=3, blocks_per_group=1, widen_factor=1),
    "mlp": functools.partial(create, "mlp", num_classes=3, hidden=(5,)),
}


def images(batch=4, channels=3, height=5, width=6):
    return jax.random.uniform(jax.random.key(1), (batch, height, width, channels))


@functools.cache
def forward(model, train):
    return jax.jit(functools.partial(model.apply, train=train))


@functools.cache
def tiny(**options):
    """The smallest network with every part of a ResNet, and variables with statistics unlike fresh ones."""
    model = TINY["small_resnet"](**options)
    return model, *filled(model, images())


def shapes(name, channels=3, num_classes=10, size=32, **options):
    return jax.eval_shape(create(name, num_classes=num_classes, **options).init, KEY, images(1, channels, size, size))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("preact_resnet18", 11_172_170),
        ("wrn_28_10", 36_479_194),
        ("wrn_32_10", 46_160_474),
        ("wrn_34_10", 46_160_474),
        ("mlp", 3072 * 100 + 100 + 1010),
    ],
)
def test_parameter_counts(name, parameters):
    params, state = shapes(name)
    assert count(params) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, state)))
    # The size of the image is not part of a convolutional network.
    if name != "mlp":
        assert jax.tree.map(jnp.shape, shapes(name, size=29)) == jax.tree.map(jnp.shape, (params, state))


@pytest.mark.parametrize(("channels", "num_classes"), [(1, 10), (3, 2), (3, 100)])
def test_channels_and_classes(channels, num_classes):
    params, _ = shapes("resnet18", channels, num_classes)
    assert count(params) == 11_173_962 + 9 * 64 * (channels - 3) + 513 * (num_classes - 10)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("channels", [1, 3])
def test_odd_image_sizes(name, channels):
    model, x = TINY[name](), images(2, channels, 7, 5)
    variables = jax.eval_shape(model.init, KEY, x)
    for train in (False, True):
        logits, state = jax.eval_shape(functools.partial(model.apply, train=train), *variables, x)
        assert logits.shape == (2, 3)
        assert jax.tree.structure(state) == jax.tree.structure(variables.model_state)


def test_train_forward_moves_statistics_by_a_tenth():
    model, params, state = tiny()
    x = images()
    logits, updated = forward(model, True)(params, state, x)
    kernel = np.asarray(params["conv1"]["conv"]["kernel"], np.float64)
    # The stem's convolution (stride 2, one pixel of padding on each side) by hand.
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = range(0, 5, 2), range(0, 6, 2)
    stem = np.array(
        [[[np.tensordot(p[i : i + 3, j : j + 3], kernel, 3) for j in columns] for i in rows] for p in padded]
    )
    for which, statistic in (("mean", stem.mean((0, 1, 2))), ("var", stem.var((0, 1, 2)))):
        old, new = (s["batch_stats"]["bn1"][which] for s in (state, updated))
        np.testing.assert_allclose(new, 0.9 * old + 0.1 * statistic, rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(lambda a, b: bool(np.all(a != b)), state, updated)
    assert all(jax.tree.leaves(moved))
    # The logits are those of the batch's own statistics, so the running ones play no part.
    other, _ = forward(model, True)(params, jax.tree.map(lambda s: s + 1.0, state), x)
    np.testing.assert_array_equal(logits, other)


def test_eval_forward_uses_running_statistics_and_keeps_them():
    model, params, state = tiny()
    x = images()
    logits, kept = forward(model, False)(params, state, x)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    other, _ = forward(model, False)(params, jax.tree.map(lambda s: s + 1.0, state), x)
    assert np.abs(logits - other).max() > 1e-3
    # What else is in the batch plays no part.
    mixed, _ = forward(model, False)(params, state, jnp.concatenate([x[:1], 1 - x[1:]]))
    np.testing.assert_allclose(mixed[0], logits[0], rtol=1e-5)
    in_training, _ = forward(model, True)(params, state, jnp.concatenate([x[:1], x[1:] ** 3]))
    assert np.abs(in_training[0] - forward(model, True)(params, state, x)[0][0]).max() > 1e-3


@pytest.mark.parametrize(
    "module",
    [ResNet(3, (), 4), ResNet(3, (), 4, pre_activation=True), WideResNet(3, 0, 1), MLP(3, (5,))],
    ids=["resnet", "preact_resnet", "wide_resnet", "mlp"],
)
def test_normalization_belongs_to_the_model(module):
    inside, outside = LinenModel(module.clone(**NORMALIZATION)), LinenModel(module)
    x = images(2)
    variables = filled(outside, x)
    mean, std = (np.reshape(NORMALIZATION[k], (1, 1, 1, 3)).astype(np.float32) for k in ("mean", "std"))
    expected, _ = jax.jit(functools.partial(outside.apply, train=False))(*variables, (x - mean) / std)
    logits, _ = jax.jit(functools.partial(inside.apply, train=False))(*variables, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_normalization_must_fit_the_channels():
    for channels in (1, 4):
        with pytest.raises(InputError, match=f"mean has 3 entries, but the images have {channels} channel"):
            jax.eval_shape(TINY["small_resnet"](**NORMALIZATION).init, KEY, images(2, channels))


def initialized(model):
    # A generator that compiles quickly.
    return jax.jit(model.init)(jax.random.key(0, impl="unsafe_rbg"), images())


@pytest.fixture(scope="module")
def resnet():
    return initialized(create("small_resnet", num_classes=50, width=16, stage_sizes=(1, 1)))


@pytest.fixture(scope="module")
def wide():
    return initialized(create("wide_resnet", num_classes=50, blocks_per_group=1, widen_factor=1))


class TestInitialisation:
    """The bounds and spreads of the published files; Flax's own defaults are three times the variance."""

    @staticmethod
    def assert_uniform(weights, fan_in):
        bound = 1 / np.sqrt(fan_in)
        assert bound * (1 - 20 / weights.size) < np.abs(weights).max() <= bound
        assert abs(weights.std() * np.sqrt(3) / bound - 1) < 2 / np.sqrt(weights.size)
        assert abs(weights.mean()) < 3 * bound / np.sqrt(weights.size)

    def test_resnet_is_pytorch_default(self, resnet):
        params = resnet.params
        self.assert_uniform(params["conv1"]["conv"]["kernel"], 9 * 3)
        self.assert_uniform(params["layer2_0"]["conv1"]["conv"]["kernel"], 9 * 16)
        self.assert_uniform(params["layer2_0"]["shortcut_conv"]["conv"]["kernel"], 16)
        self.assert_uniform(params["linear"]["dense"]["kernel"], 32)
        self.assert_uniform(params["linear"]["dense"]["bias"], 32)

    def test_wide_resnet_is_he_on_fan_out(self, wide):
        params = wide.params
        for kernel, fan_out in (
            (params["conv1"]["conv"]["kernel"], 9 * 16),
            (params["block2_0"]["conv1"]["conv"]["kernel"], 9 * 32),
            (params["block2_0"]["conv2"]["conv"]["kernel"], 9 * 32),
            (params["block3_0"]["shortcut_conv"]["conv"]["kernel"], 64),
        ):
            spread = 4 / np.sqrt(2 * kernel.size)
            assert abs(np.std(kernel) / np.sqrt(2 / fan_out) - 1) < spread
            assert np.abs(kernel).max() > 2.4 * np.sqrt(2 / fan_out)  # a normal law's tail, not truncated at 2
        self.assert_uniform(params["fc"]["dense"]["kernel"], 64)
        assert not np.any(params["fc"]["dense"]["bias"])

    def test_batch_norm_starts_as_the_identity(self, resnet, wide):
        for params, state in (resnet, wide):
            for path, leaf in jax.tree.leaves_with_path((params, state)):
                name = jax.tree_util.keystr(path[-1:], simple=True)
                if name in ("scale", "var"):
                    assert np.all(leaf == 1)
                elif name == "mean" or (name == "bias" and "dense" not in jax.tree_util.keystr(path)):
                    assert not np.any(leaf)


def test_equal_models_share_one_compilation():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(model, variables, x):
        traces.append(model)
        return model.apply(*variables, x, train=False)[0]

    make = functools.partial(TINY["mlp"], **NORMALIZATION)
    variables = filled(make(), images())
    first, second = make(), make()
    assert first is not second
    assert first == second
    assert hash(first) == hash(second)
    np.testing.assert_array_equal(run(first, variables, images()), run(second, variables, images()))
    assert len(traces) == 1
    assert first != TINY["mlp"]()


def test_models_without_state_train():
    model = TINY["mlp"]()
    params, state = model.init(KEY, images())
    assert state == {}
    other, _ = model.init(jax.random.key(7), images())
    assert np.all(params["linear"]["dense"]["kernel"] != other["linear"]["dense"]["kernel"])
    logits, updated = model.apply(params, state, images(), train=True)
    assert updated == {}
    np.testing.assert_array_equal(logits, model.apply(params, state, images(), train=False)[0])


def test_bfloat16_activations_keep_float32_weights():
    model, params, state = tiny()
    half = TINY["small_resnet"](dtype="bfloat16")
    assert jax.tree.map(jnp.shape, jax.eval_shape(half.init, KEY, images())) == jax.tree.map(jnp.shape, (params, state))
    for train in (False, True):
        logits, updated = forward(half, train)(params, state, images())
        expected, expected_state = forward(model, train)(params, state, images())
        assert {leaf.dtype for leaf in jax.tree.leaves((logits, updated))} == {jnp.dtype("float32")}
        np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())
        assert np.any(logits != expected)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=0.02, rtol=0.05), updated, expected_state)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet19", {}, "model='resnet19' is unknown; did you mean 'resnet18'?"),
        ("resnet18", {"num_classes": 1}, "num_classes=1 must be at least 2"),
        ("resnet18", {"dtype": "float16"}, "dtype='float16' is unknown; did you mean 'bfloat16'?"),
        ("resnet18", {"stage_sizes": (1,)}, "model 'resnet18' takes no option 'stage_sizes'"),
        ("wide_resnet", {"widen_facto": 2}, "takes no option 'widen_facto'; did you mean 'widen_factor'?"),
        ("wrn_34_10", {"widen_factor": 2}, "model 'wrn_34_10' takes no option 'widen_factor'"),
        ("small_resnet", {"width": 0}, "width=0 must be at least 1"),
        ("small_resnet", {"stem_stride": 0}, "stem_stride=0 must be at least 1"),
        ("small_resnet", {"stage_sizes": ()}, "stage_sizes is empty"),
        ("small_resnet", {"stage_sizes": (1, 0)}, "stage_sizes=0 must be at least 1"),
        ("mlp", {"width": 2}, "model 'mlp' takes no option 'width'"),
        ("mlp", {"parent": None}, "takes no option 'parent'"),
        ("mlp", {"mean": (0.5,)}, "must have one entry per channel each"),
        ("mlp", {"mean": (0.5,), "std": (0.0,)}, "std > 0"),
        ("mlp", {"mean": (0.5,), "std": (float("nan"),)}, "std > 0"),
    ],
)
def test_bad_arguments_are_refused(name, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        create(name, **{"num_classes": 10, **options})


@pytest.mark.parametrize(
    ("module", "message"),
    [(ResNet, "is not a Flax Linen module; give an instance"), (nn.Dense(3), "Dense takes no argument 'train'; give")],
)
def test_a_module_of_ones_own_is_checked(module, message):
    with pytest.raises(InputError, match=message):
        LinenModel(module)


def test_the_convolution_that_had_to_be_asked_for_warns_and_works():
    with pytest.warns(DeprecationWarning, match="not needed any more"):
        convolve = models.loop_safe_conv_general_dilated
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    np.testing.assert_allclose(convolve(x, kernel, (1, 1), ((0, 0), (0, 0))), jnp.full((1, 2, 2, 5), 18.0))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = models.no_such_name
