r"""SVHN, WRN-32-10: the PIAT paper's protocol; the paper has no numbers for this pair.

piat-train --config=configs/svhn_wrn32_10.py:nmse+piat --workdir=runs/svhn_wrn32_10/nmse+piat
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "nmse+piat") -> ConfigDict:
    """The protocol of CIFAR-10, without augmentation: the paper names none, robust_overfitting and AWP use none."""
    config = common.use_wrn_32_10(common.get_config(method))
    config.dataset.name = "svhn"
    config.dataset.crop_padding = 0
    config.dataset.flip = False  # digits
    return config
