r"""CIFAR-100, WRN-32-10: Tables II and III of the PIAT paper.

    piat-train --config=configs/cifar100_wrn32_10.py:nmse+piat --workdir=runs/cifar100_wrn32_10/nmse+piat

The paper's numbers, clean / PGD-20 / AutoAttack, L-inf 8/255, in percent:

    PGD-AT     59.30 / 28.13 / 23.99   PIAT 60.09 / 34.46 / 29.47
    ALP        58.11 / 28.59 / 24.45   with PIAT 59.25 / 34.04 / 28.94
    TRADES     57.99 / 31.97 / 26.76   with PIAT 59.78 / 34.52 / 29.25
    PIAT+NMSE  61.04 / 35.15 / 30.07
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "nmse+piat") -> ConfigDict:
    """The protocol of CIFAR-10; 100 classes come from the data."""
    config = common.use_wrn_32_10(common.use_100_classes(common.get_config(method)))
    config.dataset.name = "cifar100"
    return config
