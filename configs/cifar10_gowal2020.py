r"""Gowal et al. (2020), arXiv:2010.03593: TRADES with SiLU and weight averaging, CIFAR-10.

    piat-train --config=cifar10_gowal2020:trades+ema+piat --workdir=runs/gowal2020
    piat-train --config=cifar10_gowal2020 --workdir=runs/gowal2020_70_16 --config.model.name=dm_wrn_70_16

The published WRN-70-16 without additional data, clean / AutoAttack in %, L-inf 8/255: 85.29 / 57.20.

DeepMind's code attacks by PGD with Adam; here it is PGD with steps of 2/255. Its clean forward does not update
BatchNorm's statistics, ours does.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "trades+ema") -> ConfigDict:
    """200 epochs, learning-rate drops at half and three quarters, batch size 512."""
    config = common.use_deepmind(common.get_config(method))
    config.epochs = 200
    config.batch_size = 512
    config.optimizer.schedule = "step"
    config.optimizer.lr = 0.2
    config.optimizer.lr_unit = "shares"
    config.optimizer.lr_drops = (0.5, 0.75)
    config.optimizer.lr_warmup = 0.025
    config.optimizer.lr_every = "step"
    return config
