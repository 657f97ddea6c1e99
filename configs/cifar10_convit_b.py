r"""CIFAR-10, ConViT-B: Table IV of the PIAT paper.

    piat-train --config=configs/cifar10_convit_b.py:trades+ard_prm+piat --workdir=runs/cifar10_convit_b/x

The paper's numbers, clean / PGD-20 / AutoAttack, L-inf 8/255, in percent; A&P is `ard_prm`:

    PGD-AT 61.47 / 38.64 / 34.07   with A&P 85.21 / 53.25 / 49.01   with A&P and PIAT 87.50 / 56.25 / 51.86
    TRADES 82.75 / 52.77 / 49.61            83.51 / 53.21 / 50.11                     86.03 / 55.88 / 52.35
    MART   63.61 / 42.51 / 37.08            80.32 / 53.11 / 48.35                     81.20 / 56.17 / 51.13

The runs start from weights pretrained on ImageNet; without these the numbers cannot be reached.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "ard_prm+piat") -> ConfigDict:
    """The protocol of configs/common.py for Vision Transformers."""
    return common.use_vit(common.get_config(method), "convit_base")
