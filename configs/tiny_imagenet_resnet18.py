r"""Tiny-ImageNet, ResNet-18: a data set of the RPAT paper.

    piat-train --config=configs/tiny_imagenet_resnet18.py:rpat --workdir=runs/tiny_imagenet_resnet18/rpat

The paper's own protocol, beside its numbers: `python -m experiments.run rpat table1 --scale=paper --data=...`.
"""

from configs import common
from piat_jax.cli.config import Config


def get_config(method: str = "nmse+piat") -> Config:
    """The protocol of CIFAR-10 on 200 classes and images of 64 x 64 pixels; "final" tests on the validation images."""
    config = common.get_config(method)
    config.dataset.name = "tiny_imagenet"
    return config
