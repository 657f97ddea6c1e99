r"""SVHN, ResNet-18: Table I of the PIAT paper.

    piat-train --config=configs/svhn_resnet18.py:nmse+piat --workdir=runs/svhn_resnet18/nmse+piat

The paper's numbers, best checkpoint (in brackets: final PGD-20), clean / PGD-20 / CW / AutoAttack, L-inf 8/255, in %:

    PGD-AT     93.85 / 59.01 / 48.66 / 43.02 (52.35)
    ALP        92.54 / 59.13 / 52.22 / 45.67 (55.12)
    TRADES     90.88 / 59.50 / 52.76 / 46.59 (57.04)
    PIAT+NMSE  91.70 / 61.21 / 55.88 / 51.29 (59.84)
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "nmse+piat") -> ConfigDict:
    """The protocol of CIFAR-10, without augmentation: the paper names none, robust_overfitting and AWP use none."""
    config = common.get_config(method)
    config.dataset.name = "svhn"
    config.dataset.crop_padding = 0
    config.dataset.flip = False  # digits
    return config
