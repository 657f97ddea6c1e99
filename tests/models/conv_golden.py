"""The smallest network of each published kind and where its recorded numbers are; weights: `torch_reference.fill`."""

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from piat_jax.core.types import Variables
from piat_jax.models import LinenModel, ResNet, SwishPreActResNet, SwishWideResNet, WideResNet
from tests.models.torch_reference import filled, images

FILE = Path(__file__).parent / "golden" / "conv.npz"
WEIGHTS = np.array([[1.0, -0.5, 0.25], [-1.0, 2.0, 0.5]])  # of the logits whose gradient is recorded
PLAIN = {"mean": (), "std": ()}
# Two stages: the first keeps its width; the second halves the image and has one more block.
SMALL = {
    "resnet": ResNet(3, (1, 2), 4),
    "resnet_bottleneck": ResNet(3, (1, 2), 4, bottleneck=True),
    "preact_v1": ResNet(3, (1, 2), 4, pre_activation=True, raw_shortcut=True),
    "preact_v2": ResNet(3, (1, 2), 4, pre_activation=True),
    "wide_resnet": WideResNet(3, 2, 1),
    "dm_wide_resnet": SwishWideResNet(3, 2, 1, **PLAIN),
    "dm_preact": SwishPreActResNet(3, (1, 2), 4, **PLAIN),
}


def sizes(name):
    """The same sizes for `tests.torch_networks.NETWORKS`: blocks, width, classes."""
    module = SMALL[name]
    if "wide" in name:
        return module.blocks_per_group, module.widen_factor, module.num_classes
    return module.stage_sizes, module.width, module.num_classes


@functools.cache
def small(name):
    """The model and its variables, whose statistics are unlike fresh ones."""
    model = LinenModel(SMALL[name])
    return model, Variables(*filled(model, jnp.asarray(images(8, 8), jnp.float32)))
