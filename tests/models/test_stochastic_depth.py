"""Stochastic depth beside closed forms: whole networks whose branches are left out, or scaled, by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import models
from piat_jax.core.checks import InputError
from piat_jax.core.forward import forward_keys, make_logits_fn
from piat_jax.core.rng import example_keys
from piat_jax.models import LinenModel, create
from piat_jax.models.stochastic_depth import IMAGE_KEYS, branch_factors, rising_rates

RATE, IMAGES = 0.4, 48
# Options of a network of two blocks, the parameters that each branch of the last block is linear in, and whether the
# first block has the rate of the last.
ATTENTION = (("attn/proj/kernel", "attn/proj/bias"), ("mlp/fc2/kernel", "mlp/fc2/bias"))
NETWORKS = {
    "convnext": ({"depths": (1, 1), "widths": (4, 8)}, "stages_1/blocks_0", (("gamma",),)),
    "swin": ({"width": 8, "depths": (1, 1), "heads": (2, 2), "window": 2}, "layers_1/blocks_0", ATTENTION),
    "vit": ({"width": 8, "depth": 2, "heads": 2, "patch_size": 8}, "blocks_1", ATTENTION),
    "convit": ({"width": 8, "depth": 2, "local_depth": 1, "heads": 2, "patch_size": 8}, "blocks_1", ATTENTION),
    "xcit": (
        {"width": 8, "depth": 1, "class_depth": 1, "heads": 2, "patch_size": 4, "convolutions": 2},
        "blocks_0",
        (("gamma1",), ("gamma3",), ("gamma2",)),
    ),
}
KEYS = example_keys(jax.random.key(3), jnp.arange(IMAGES))


@functools.cache
def network(name, drop_path=RATE, **more):
    """A model, weights whose branches all matter, and images that are all the same."""
    model = create(name, num_classes=3, **NETWORKS[name][0], drop_path=drop_path, **more)
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 16, 16, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), image)
    leaves, tree = jax.tree.flatten(variables.params)
    rng = np.random.default_rng(1)
    leaves = [jnp.asarray(np.asarray(w) + rng.normal(0, 0.2, w.shape), jnp.float32) for w in leaves]
    params = jax.tree.unflatten(tree, leaves)
    return model, variables._replace(params=params), jnp.tile(image, (IMAGES, 1, 1, 1))


@functools.cache
def forward(model, *, train):
    """Its logits, compiled."""
    return jax.jit(lambda params, state, images, key: model.apply(params, state, images, train=train, key=key)[0])


def scaled(params, place, factor):
    """The parameters with the one at a path times a factor."""
    first, _, rest = place.partition("/")
    return {**params, first: scaled(params[first], rest, factor) if rest else factor * params[first]}


@functools.cache
def trained(name):
    """Logits of the images in training mode, each under a key of its own."""
    model, (params, state), images = network(name)
    return np.asarray(forward(model, train=True)(params, state, images, KEYS))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "xcit"])
def test_each_image_has_its_branches_left_out_or_scaled(name):
    """`x + b f(x)` with b = 0 or 1 / (1 - p) for each branch of the last block: all cases come, and no other."""
    _, block, branches = NETWORKS[name]
    model, (params, state), images = network(name)
    cases = {}
    for chosen in itertools.product((0.0, 1 / (1 - RATE)), repeat=len(branches)):
        changed = params
        for places, factor in zip(branches, chosen):
            for place in places:
                changed = scaled(changed, f"{block}/{place}", factor)
        cases[chosen] = np.asarray(forward(model, train=False)(changed, state, images[:1], None)[0])
    for one, other in itertools.combinations(cases.values(), 2):
        assert np.abs(one - other).max() > 1e-3
    distances = np.stack([np.abs(trained(name) - case).max(axis=1) for case in cases.values()])
    assert distances.min(axis=0).max() < 1e-5
    assert set(distances.argmin(axis=0)) == set(range(len(cases)))


@pytest.mark.parametrize("kept_branch", [False, True])
def test_xcit_leaves_out_branches_between_batch_norms(kept_branch, monkeypatch):
    """With factors of our own, alike for all images, BatchNorm sees what it sees in a network of such weights."""
    _, block, branches = NETWORKS["xcit"]
    model, (params, state), images = network("xcit")
    factors = jnp.asarray([0.0, 1.7, 0.0] if kept_branch else [1.7, 0.0, 1.7])
    given = (jnp.tile(factors[None], (IMAGES, 1)),)
    images = images * jnp.linspace(0.5, 1.0, IMAGES).reshape(-1, 1, 1, 1)
    whole = forward(model, train=True)
    with monkeypatch.context() as patch:
        patch.setattr("piat_jax.models.xcit.branch_factors", lambda *arguments: given)
        found = jax.jit(lambda params: model.apply(params, state, images, train=True)[0])(params)
    for (place,), factor in zip(branches, factors):
        params = scaled(params, f"{block}/{place}", factor)
    expected = whole(params, state, images, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


class Bare:
    """What `branch_factors` asks of a module."""

    def __init__(self, keys):
        self.keys = keys

    def has_variable(self, collection, name):
        return (collection, name) == (IMAGE_KEYS, "keys")

    def get_variable(self, collection, name):
        return self.keys


def test_factors_keep_the_mean_and_are_independent():
    keys = example_keys(jax.random.key(5), jnp.arange(4000))
    first, *rest = branch_factors(Bare(keys), (0.0, 0.2, 0.5), 2)
    assert first is None
    for factors, rate in zip(rest, (0.2, 0.5)):
        assert factors.shape == (4000, 2)
        assert set(np.unique(factors)) == {np.float32(0), np.float32(1 / (1 - rate))}
        spread = np.sqrt(rate / (1 - rate) / 4000)  # of the mean of 4,000
        np.testing.assert_allclose(np.mean(factors, axis=0), 1.0, atol=4.5 * spread)
    drawn = np.concatenate(rest, axis=1) > 0
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(4), atol=4.5 / np.sqrt(4000))


def test_rates_are_those_of_timm():
    """`linspace(0, last, blocks)`; tests/interop/test_imagenet_torch.py has timm's own."""
    np.testing.assert_allclose(rising_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
    # Of ConvNeXt-T's last blocks and of ViT-Ti's first ones in timm 1.0.31, in float32.
    np.testing.assert_allclose(rising_rates(0.3, 18)[15:], [0.2647058963775635, 0.2823529541492462, 0.3], rtol=1e-7)
    np.testing.assert_allclose(rising_rates(0.3, 12)[:3], [0, 0.0272727292, 0.0545454584], rtol=1e-7)
    np.testing.assert_allclose(rising_rates(0.1, 18), np.linspace(0, 0.1, 18))
    assert rising_rates(0.2, 12)[-1] == 0.2
    assert rising_rates(0.2, 1) == (0.0,)


@pytest.mark.parametrize(
    ("name", "options", "expected", "branches"),
    [
        ("convnext", {"depths": (2, 3), "widths": (4, 8)}, [0, 0.1, 0.2, 0.3, 0.4], 1),
        ("swin", {"width": 4, "depths": (2, 3), "heads": (1, 1), "window": 2}, [0, 0.1, 0.2, 0.3, 0.4], 2),
        ("vit", {"width": 4, "depth": 3, "heads": 1}, [0, 0.2, 0.4], 2),
        ("convit", {"width": 4, "depth": 3, "local_depth": 2, "heads": 1}, [0, 0.2, 0.4], 2),
        ("xcit", {"width": 8, "depth": 3, "heads": 1, "patch_size": 4}, [0.4, 0.4, 0.4], 3),  # in timm the same in all
    ],
)
def test_every_block_has_its_rate(name, options, expected, branches, monkeypatch):
    seen = []

    def asked(module, rates, count):
        seen.append((list(rates), count))
        return (None,) * len(rates)

    monkeypatch.setattr(f"piat_jax.models.{name}.branch_factors", asked)
    model = create(name, num_classes=3, drop_path=0.4, **options)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    ((rates, count),) = seen
    np.testing.assert_allclose(rates, expected)
    assert count == branches


@pytest.mark.parametrize("name", NETWORKS)
def test_with_a_rate_of_0_or_without_keys_the_program_is_that_of_a_network_without(name):
    def program(drop_path, *, train, key):
        model, (params, state), images = network(name, drop_path)
        return str(jax.make_jaxpr(functools.partial(model.apply, train=train))(params, state, images, key=key))

    for train in (True, False):
        assert program(RATE, train=train, key=None) == program(0.0, train=train, key=None)
    for train, rate in ((True, 0.0), (False, 0.0), (False, RATE)):
        assert "random_bits" not in program(rate, train=train, key=KEYS)
    assert "random_bits" in program(RATE, train=True, key=KEYS)


@pytest.mark.parametrize("name", ["convnext", "vit"])
def test_an_images_branches_depend_on_its_own_key_alone(name):
    model, (params, state), images = network(name)
    order = np.random.default_rng(2).permutation(IMAGES)[:7]
    few = forward(model, train=True)(params, state, images[:7], KEYS[order])
    np.testing.assert_allclose(few, trained(name)[order], rtol=1e-5, atol=1e-6)


def test_one_key_is_a_key_for_each_image():
    model, (params, state), images = network("convnext")
    one = forward(model, train=True)(params, state, images, jax.random.key(3))
    np.testing.assert_allclose(one, trained("convnext"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["convnext", "vit", "xcit"])  # Swin and ConViT have ViT's block
def test_recomputed_blocks_leave_out_the_same_branches(name):
    def gradient(remat):
        model, (params, state), images = network(name, remat=remat)

        @jax.jit
        @jax.grad
        def of(params):
            return jnp.sum(model.apply(params, state, images[:4], train=True, key=KEYS[:4])[0] ** 2)

        return of(params)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), gradient(remat=True), gradient(remat=False)
    )


def test_attacks_see_the_whole_network():
    model, variables, images = network("convnext")
    for train in (False, True):
        expected = forward(model, train=False)(*variables, images[:2], None)
        seen = jax.jit(lambda logits_fn, x: logits_fn(x))(make_logits_fn(model, variables, train=train), images[:2])
        np.testing.assert_array_equal(seen, expected)


def test_keys_of_a_forward():
    indices = jnp.array([7, 3])
    drawing, other = network("convnext")[0], network("convnext", 0.0)[0]
    assert forward_keys(other, jax.random.key(0), indices, "clean") is None

    def data(step, name, which=indices):
        return jax.random.key_data(forward_keys(drawing, jax.random.key(step), which, name)).tolist()

    assert data(0, "clean") == data(0, "clean", indices[::-1])[::-1]
    found = [data(0, "clean"), data(0, "adversarial"), data(1, "clean")]
    assert len({str(each) for each in found}) == 3


class Dropping(models.MLP):
    draws = True

    @models.layers.nn.compact
    def __call__(self, images, train):
        x = models.layers.nn.Dropout(0.5, deterministic=not train)(images.reshape(len(images), -1))
        return models.layers.nn.Dense(self.num_classes)(x)


def test_a_module_of_ones_own_with_dropout_gets_a_key_too():
    model = LinenModel(Dropping(num_classes=3))
    assert model.draws
    images = jnp.ones((5, 2, 2, 1))
    variables = model.init(jax.random.key(0), images)
    keys = forward_keys(model, jax.random.key(1), jnp.arange(5), "clean")
    one, other = (model.apply(*variables, images, train=True, key=key)[0] for key in (keys, keys[::-1]))
    assert (np.asarray(one) != np.asarray(other)).any()
    np.testing.assert_array_equal(one, model.apply(*variables, images, train=True, key=keys[0])[0])


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_out_of_range_are_named(rate):
    with pytest.raises(InputError, match=rf"drop_path={rate} must be in \[0, 1\)"):
        create("convnext_tiny", num_classes=3, drop_path=rate)
    module = models.ViT(num_classes=3, depth=2, drop_path=rate)
    with pytest.raises(InputError, match="drop_path"):
        jax.eval_shape(LinenModel(module).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert create("convnext_tiny", num_classes=3, drop_path=0).module.drop_path == 0
    with pytest.raises(InputError, match="takes no option 'drop_path'"):
        create("resnet18", num_classes=3, drop_path=0.1)
