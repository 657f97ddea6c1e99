r"""Rebuffi et al. (2021), arXiv:2103.01946: CutMix and weight averaging, CIFAR-10.

    piat-train --config=cifar10_rebuffi2021:trades+mix+ema+piat --workdir=runs/rebuffi2021
    piat-train --config=cifar10_rebuffi2021:trades+ema --workdir=runs/rebuffi2021_ddpm \
        --config.dataset.extra=cifar10_ddpm.npz

The first line is the protocol with CutMix and PIAT, the second that with 1 M images from a DDPM and without CutMix. The
published WRN-28-10 with CutMix and DDPM, clean / AutoAttack in %, L-inf 8/255: 87.33 / 60.75.

As in DeepMind's code: batch size 1024, 400 epochs, a cosine schedule from 0.4 with ten epochs of warm-up, an average
with decay 0.995, label smoothing of 0.1 for generated images.
That code attacks by PGD with Adam; here it is PGD with steps of 2/255.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "trades+mix+ema") -> ConfigDict:
    """CutMix in every batch if `mix` is in the method; generated images if `dataset.extra` is set."""
    config = common.use_deepmind(common.get_config(method))
    config.epochs = 400
    config.batch_size = 1024
    config.dataset.extra_fraction = 0.7
    config.dataset.extra_smoothing = (0.1,)
    config.objective.smoothing_over = "all"
    config.optimizer.schedule = "cosine"
    config.optimizer.lr = 0.4
    config.optimizer.lr_warmup = 10.0
    config.optimizer.lr_every = "step"
    if "mix" in config:
        config.mix.prob, config.mix.switch = 1.0, 1.0
    return config
