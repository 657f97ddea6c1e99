r"""CIFAR-10, ViT-B: Table IV of the PIAT paper.

    piat-train --config=configs/cifar10_vit_b.py:trades+ard_prm+piat --workdir=runs/cifar10_vit_b/x

The paper's numbers, clean / PGD-20 / AutoAttack, L-inf 8/255, in percent; A&P is `ard_prm`:

    PGD-AT 83.07 / 52.93 / 48.99   with A&P 84.64 / 53.44 / 49.67   with A&P and PIAT 87.83 / 56.34 / 52.27
    TRADES 83.45 / 53.07 / 49.76            83.91 / 53.52 / 50.56                     87.09 / 55.97 / 52.57
    MART   77.05 / 52.99 / 47.95            78.75 / 53.51 / 49.01                     82.23 / 55.94 / 51.03

The runs start from weights pretrained on ImageNet; without these the numbers cannot be reached.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "ard_prm+piat") -> ConfigDict:
    """The protocol of configs/common.py for Vision Transformers."""
    return common.use_vit(common.get_config(method), "vit_base")
