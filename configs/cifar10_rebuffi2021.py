r"""Rebuffi et al. (2021), arXiv:2103.01946: CutMix and an average of the weights, CIFAR-10.

    piat-train --config=cifar10_rebuffi2021:trades+mix+ema+piat --workdir=runs/rebuffi2021
    piat-train --config=cifar10_rebuffi2021:trades+ema --workdir=runs/rebuffi2021_ddpm \
        --config.dataset.extra=cifar10_ddpm.npz

The first line is the protocol with CutMix and PIAT, the second that with 1 M images of a DDPM and no CutMix. The
published WRN-28-10 of CutMix and DDPM, clean / AutoAttack in %, L-inf 8/255: 87.33 / 60.75.

As in DeepMind's code: batch 1024, a cosine from 0.4 with ten epochs of warm-up, 400 epochs, decay 0.995 of the average,
labels of generated images smoothed by 0.1.
Its attack is PGD whose steps Adam takes; here it is PGD with steps of 2/255.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "trades+mix+ema") -> ConfigDict:
    """CutMix in every batch where `mix` is in the method; generated images where `dataset.extra` is set."""
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
