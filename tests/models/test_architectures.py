"""The published networks: their sizes, and what they compute beside numbers recorded in PyTorch (torch_networks.py)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.interop.names import flatten, network_of, torch_key
from piat_jax.models import LinenModel, create
from tests.models import conv_golden
from tests.models.torch_reference import images

KEY, X = jax.random.key(0), jnp.asarray(images(8, 8), jnp.float32)
GOLDEN = np.load(conv_golden.FILE)


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("resnet18", 11_173_962, 122),
        ("preact_resnet18_v1", 11_171_146, 102),
        ("preact_resnet18", 11_172_170, 107),
        ("resnet50", 23_520_842, 320),
        ("wrn_28_10", 36_479_194, 155),
        ("wrn_34_20", 184_531_674, 191),
        ("dm_preact_resnet18", 12_548_426, 107),
        ("dm_wrn_34_10", 46_160_474, 191),
        ("dm_wrn_70_16", 266_796_506, 407),
    ],
)
def test_published_sizes(name, parameters, tensors):
    model = create(name, num_classes=10)
    variables = jax.eval_shape(model.init, KEY, jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == parameters
    keys = {torch_key(path, network_of(model)) for path in flatten(variables)}
    counters = sum(key.endswith("running_var") for key in keys)
    assert len(keys) + counters == tensors


@functools.partial(jax.jit, static_argnums=0)
def logits_and_gradient(model, variables):
    def value(x):
        logits, _ = model.apply(*variables, x, train=False)
        return jnp.sum(logits * conv_golden.WEIGHTS), logits

    (_, logits), gradient = jax.value_and_grad(value, has_aux=True)(X)
    return logits, gradient


@pytest.mark.parametrize("name", conv_golden.SMALL)
def test_logits_and_input_gradient_equal_pytorch(name):
    logits, gradient = logits_and_gradient(*conv_golden.small(name))
    for got, what in ((logits, "logits"), (gradient, "gradient")):
        expected = GOLDEN[f"{name}/{what}"]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_remat_changes_nothing_but_what_is_kept():
    for name in ("preact_v1", "dm_preact", "wide_resnet"):
        model, variables = conv_golden.small(name)
        again = LinenModel(model.module.clone(remat=True))
        assert jax.tree.map(jnp.shape, jax.eval_shape(again.init, KEY, X)) == jax.tree.map(jnp.shape, variables)
        assert "remat" in str(jax.make_jaxpr(functools.partial(logits_and_gradient, again))(variables))
    expected, got = logits_and_gradient(model, variables), logits_and_gradient(again, variables)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)


def test_deepmind_networks_normalise_unless_told_otherwise():
    inside, outside = (create("dm_preact_resnet18", num_classes=3, **options) for options in ({}, conv_golden.PLAIN))
    assert inside.module.mean == (0.4914, 0.4822, 0.4465)
    assert outside.module.mean == ()
