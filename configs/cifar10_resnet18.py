r"""CIFAR-10, ResNet-18: Table I of the PIAT paper.

    piat-train --config=configs/cifar10_resnet18.py:nmse+piat --workdir=runs/cifar10_resnet18/nmse+piat

The paper's numbers, best checkpoint (in brackets: final PGD-20), clean / PGD-20 / CW / AutoAttack, L-inf 8/255, in %:

    PGD-AT     84.28 / 50.29 / 49.31 / 46.33 (45.86)
    ALP        79.74 / 52.37 / 49.60 / 46.13 (48.62)
    TRADES     82.39 / 53.60 / 50.90 / 48.04 (50.74)
    PIAT+NMSE  80.96 / 53.74 / 51.72 / 48.80 (52.81)
    NMSE       84.77 / 51.56 /   –   / 46.60 (Table V)
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "nmse+piat") -> ConfigDict:
    """The protocol of configs/common.py."""
    return common.get_config(method)
