r"""CIFAR-100, ResNet-18: Table I of the PIAT paper.

    piat-train --config=configs/cifar100_resnet18.py:nmse+piat --workdir=runs/cifar100_resnet18/nmse+piat

The paper's numbers, best checkpoint (in brackets: final PGD-20), clean / PGD-20 / CW / AutoAttack, L-inf 8/255, in %:

    PGD-AT     58.48 / 28.36 / 27.06 / 23.85 (21.72)
    ALP        57.29 / 28.12 / 26.84 / 23.57 (24.66)
    TRADES     56.71 / 29.19 / 26.05 / 23.91 (27.70)
    PIAT+NMSE  56.04 / 31.45 / 28.74 / 26.09 (30.87)
    NMSE       58.88 / 29.55 /   –   / 24.82 (Table V)
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "nmse+piat") -> ConfigDict:
    """The protocol of CIFAR-10; 100 classes come from the data."""
    config = common.use_100_classes(common.get_config(method))
    config.dataset.name = "cifar100"
    return config
