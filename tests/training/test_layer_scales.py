"""Rates by layer: the order of a network's parts is that of its forward."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from piat_jax.core.checks import InputError
from piat_jax.models import LinenModel, create
from piat_jax.training.layer_scales import layer_scales

SHAPE = (8, 8, 3)


def scales(model, decay=0.5):
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
    return layer_scales(model, like, SHAPE, decay)


def of_parts(tree):
    found = {name: set(jax.tree.leaves(part)) for name, part in tree.items()}
    assert all(len(values) == 1 for values in found.values())
    return {name: values.pop() for name, values in found.items()}


def test_a_vision_transformer():
    found = of_parts(scales(create("vit", num_classes=10, width=8, depth=11, heads=2, patch_size=4)))
    order = ["head", "norm", *(f"blocks_{number}" for number in reversed(range(11))), "patch_embed"]
    assert {name: found[name] for name in order} == {name: 0.5**above for above, name in enumerate(order)}
    assert found["cls_token"] == found["pos_embed"] == found["patch_embed"]


class Backwards(nn.Module):
    """Its parts are used in the order z, m, a, the last of them inside of a function of its own."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(4, name="z")(images.reshape(len(images), -1))
        x = jax.checkpoint(jax.nn.relu)(nn.Dense(4, name="m")(x))
        return nn.remat(nn.Dense)(3, name="a")(x)


def test_names_do_not_matter():
    assert of_parts(scales(LinenModel(Backwards()))) == {"z": 0.25, "m": 0.5, "a": 1.0}


def test_one_rate_for_all():
    assert set(jax.tree.leaves(scales(create("small_resnet", num_classes=10), 1.0))) == {1.0}


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_out_of_range(decay):
    with pytest.raises(InputError, match=f"layer_decay={decay} must be in"):
        functools.partial(scales, create("small_resnet", num_classes=10))(decay)
