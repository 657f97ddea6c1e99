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


def by_place(tree):
    """The scale of each part or block, by its path in timm's names; all parameters of one have the same."""
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        place = ".".join(names[:2] if names[0].startswith(("stages", "layers")) else names[:1])
        assert found.setdefault(place, value) == value
    return found


def test_convnext_has_twelve_parts_between_stem_and_head():
    """As the authors count the 36 blocks of S, B and L: in threes, each with what halves the image before it."""
    net = create("convnext", num_classes=3, depths=(3, 3, 27, 3), widths=(1, 2, 3, 4), stem_stride=1)
    found = by_place(scales(net))
    parts = {"stem_0": 0, "stem_1": 0, "head": 13}
    first = (1, 2, 3, 12)
    for stage, depth in enumerate((3, 3, 27, 3)):
        parts |= {f"stages_{stage}.blocks_{block}": first[stage] + block // 3 for block in range(depth)}
    parts |= {f"stages_{stage}.downsample_{n}": first[stage] for stage in (1, 2, 3) for n in (0, 1)}
    assert found == {place: 0.5 ** (13 - part) for place, part in parts.items()}


def test_swin_counts_block_by_block():
    net = create("swin", num_classes=3, width=2, depths=(2, 1, 3), heads=(1, 1, 1), window=2, patch_size=2)
    order = ["layers_0.blocks_0", "layers_0.blocks_1", "layers_1.blocks_0"]
    order += [f"layers_2.blocks_{block}" for block in range(3)]
    order = ["patch_embed", *order, "norm", "head"]
    expected = {place: 0.5 ** (len(order) - 1 - number) for number, place in enumerate(order)}
    for stage in (1, 2):
        expected[f"layers_{stage}.downsample"] = expected[f"layers_{stage}.blocks_0"]
    assert by_place(scales(net)) == expected


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
