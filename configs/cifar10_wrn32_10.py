r"""CIFAR-10, WRN-32-10: Tables II and III of the PIAT paper.

    piat-train --config=configs/cifar10_wrn32_10.py:nmse+piat --workdir=runs/cifar10_wrn32_10/nmse+piat

The paper's numbers, clean / PGD-20 / AutoAttack, L-inf 8/255, in percent:

    PGD-AT     86.87 / 48.77 / 47.78   PIAT 85.56 / 52.80 / 48.35
    ALP        84.18 / 53.55 / 49.68   with PIAT 83.35 / 57.71 / 52.35
    TRADES     82.13 / 55.14 / 50.38   with PIAT 82.08 / 58.93 / 53.73
    PIAT+NMSE  85.04 / 58.04 / 53.83
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "nmse+piat") -> ConfigDict:
    """The protocol of configs/common.py, for WRN-32-10."""
    return common.use_wrn_32_10(common.get_config(method))
