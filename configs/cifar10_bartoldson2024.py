r"""Bartoldson et al. (2024), arXiv:2404.09349: Wang et al.'s protocol at a larger scale, CIFAR-10.

    piat-train --config=cifar10_bartoldson2024:trades+ema+piat --workdir=runs/bartoldson2024 --config.fsdp=true \
        --config.dataset.stream=true --config.dataset.extra=500m.npz

The published model, clean / AutoAttack in %, L-inf 8/255: 93.68 / 73.71 (WRN-94-16, 500 M generated images). Its
code is that of Wang et al. (2023), with the same defaults; above 1 M images the generated fraction is 0.8. The paper
states the batch size, epochs and images of its best run: set their fields.
"""

from ml_collections import ConfigDict

from piat_jax.configs import cifar10_wang2023


def get_config(method: str = "trades+ema") -> ConfigDict:
    """Wang et al. (2023) with WRN-94-16: 15 blocks a group, 16 times as wide."""
    config = cifar10_wang2023.get_config(method)
    config.model.name = "dm_wide_resnet"
    config.model.options.blocks_per_group = 15
    config.model.options.widen_factor = 16
    config.batch_size = 2048
    config.dataset.extra_fraction = 0.8
    return config
