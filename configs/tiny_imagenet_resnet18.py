r"""Tiny-ImageNet, ResNet-18: a data set of the RPAT paper.

    piat-train --config=configs/tiny_imagenet_resnet18.py:rpat --workdir=runs/tiny_imagenet_resnet18/rpat

For that paper's protocol, next to its numbers: `python -m experiments.run rpat table1 --scale=paper --data=...`.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "nmse+piat") -> ConfigDict:
    """The protocol of CIFAR-10 on 200 classes and images of 64 x 64 pixels; the test set is the validation images."""
    config = common.get_config(method)
    config.dataset.name = "tiny_imagenet"
    return config
