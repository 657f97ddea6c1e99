r"""Wang et al. (2023), arXiv:2302.04638: TRADES with diffusion-generated images, WRN-28-10 with SiLU, CIFAR-10.

    piat-train --config=cifar10_wang2023:trades+ema+piat --workdir=runs/wang2023 --config.dataset.extra=1m.npz
    piat-train --config=cifar10_wang2023 --workdir=runs/wang2023_70_16 --config.model.name=dm_wrn_70_16 \
        --config.epochs=2000 --config.batch_size=2048 --config.optimizer.lr=0.2 --config.dataset.extra=50m.npz

The first line is the protocol with PIAT, which the paper does not have. In L2: --config.attack.norm=l2
--config.attack.eps=128/255 --config.attack.step_size=15/255. CIFAR-100: --config.dataset.name=cifar100.

The authors' models, clean / AutoAttack in %, with up to 50 M images: CIFAR-10 L-inf 92.44 / 67.31 (WRN-28-10) and
93.25 / 70.69 (WRN-70-16), L2 95.16 / 83.63 and 95.54 / 84.86; CIFAR-100 L-inf 72.58 / 38.83 and 75.22 / 42.67.

As in their code: beta 5, label smoothing 0.1 over all classes, a one-cycle schedule updated per epoch with its peak at
2.5 % of the run, the average from then on with the weights' statistics, and batches of 512 with a generated fraction of
0.7. Unlike their code: the last layer's biases do not decay either, and the first step's statistics are not copied
entirely.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "trades+ema") -> ConfigDict:
    """The protocol for 1 M generated images; without `dataset.extra` that for CIFAR-10 alone."""
    config = common.use_deepmind(common.get_config(method))
    config.epochs = 400
    config.batch_size = 512
    config.dataset.extra_fraction = 0.7
    config.objective.label_smoothing = 0.1
    config.objective.smoothing_over = "all"
    if config.method.split("+")[0] == "trades":
        config.objective.beta = 5.0
    config.optimizer.schedule = "one_cycle"
    config.optimizer.lr = 0.2
    config.optimizer.lr_peak = 0.025
    config.optimizer.lr_unit = "shares"
    if "average" in config:
        config.average.start = 0.025
    return config
