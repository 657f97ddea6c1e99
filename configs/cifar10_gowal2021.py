r"""Gowal et al. (2021), arXiv:2110.09468: DDPM-generated images in every batch, CIFAR-10.

    piat-train --config=cifar10_gowal2021:trades+ema+piat --workdir=runs/gowal2021 \
        --config.dataset.extra=cifar10_ddpm.npz

The published PreActResNet-18 with 100 M generated images, clean / AutoAttack in %, L-inf 8/255: 87.35 / 58.63
(--config.model.name=dm_preact_resnet18). The protocol is that of Rebuffi et al. (2021) without CutMix; 0.7 of each
batch is generated, and training is longer with more images.
"""

from ml_collections import ConfigDict

from piat_jax.configs import cifar10_rebuffi2021


def get_config(method: str = "trades+ema") -> ConfigDict:
    """The protocol of Rebuffi et al. (2021)."""
    return cifar10_rebuffi2021.get_config(method)
