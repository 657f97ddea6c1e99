r"""A small version of Wang et al.'s recipe (2023): 512 images of Fashion-MNIST and generated images, on a CPU.

    python -m experiments.recipes --kinds=generated --workdir=runs/recipes
    piat-train --config=embedded_generated:trades+ema+piat --workdir=runs/x --config.dataset.extra=generated.npz

experiments/results/recipes has the measured numbers.
"""

from ml_collections import ConfigDict

from piat_jax.configs import embedded_512


def get_config(method: str = "trades+ema") -> ConfigDict:
    """TRADES with beta 5, smoothed labels, one cycle with Nesterov and an average, as in cifar10_wang2023."""
    config = embedded_512.get_config(method)
    config.epochs = 60
    config.dataset.extra_fraction = 0.7
    config.dataset.epoch_steps = 32
    config.objective.label_smoothing = 0.1
    config.objective.smoothing_over = "all"
    if config.method.split("+")[0] == "trades":
        config.objective.beta = 5.0
        config.objective.clean_forwards = 1
        config.attack.start = "uniform"
    config.optimizer.schedule = "one_cycle"
    config.optimizer.lr = 0.2
    config.optimizer.lr_peak = 0.1
    config.optimizer.lr_unit = "shares"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay_on = "matrices"
    if "average" in config and "batch_stats" in config.average:
        config.average.batch_stats = "copy"
    return config
