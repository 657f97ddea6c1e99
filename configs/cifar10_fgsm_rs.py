r"""FGSM-RS, Wong et al. (2020), arXiv:2001.03994: one step from a random start, PreActResNet-18, CIFAR-10.

    piat-train --config=cifar10_fgsm_rs:pgd_at+piat --workdir=runs/fgsm_rs

RobustBench lists the paper's model with 83.34 % clean and 43.21 % AutoAttack accuracy. With the same protocol:

* N-FGSM, de Jorge et al. (2022), arXiv:2202.01181, which does not collapse at larger radii: --config.attack.name=n_fgsm
* GradAlign, Andriushchenko & Flammarion (2020), arXiv:2007.02617 (79.84 / 43.93): `cifar10_fgsm_rs:grad_align`
* Free-AT, Shafahi et al. (2019), arXiv:1904.12843: `cifar10_fgsm_rs:free`, fast_adversarial's 11 epochs of 8 replays at
  a learning rate of 0.04; here these are 88 epochs, each with an eighth of the data
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "pgd_at") -> ConfigDict:
    """The protocol of fast_adversarial: a learning rate that rises to 0.2 and falls to 0 linearly in 15 epochs."""
    config = common.get_config(method)
    config.model.name = "preact_resnet18"
    config.model.mean, config.model.std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    config.epochs = 15
    config.optimizer.schedule = "triangular"
    config.optimizer.lr = 0.2
    config.optimizer.lr_every = "step"
    config.optimizer.weight_decay = 5e-4
    config.objective.attack_batch_norm = "train"
    config.attack.steps = 1
    config.attack.step_size = 10 / 255
    config.evaluation.step_size = 2 / 255
    config.evaluation.final_attacks = ("clean", "pgd50", "aa")
    config.evaluation.restarts = 1
    parts = config.method.split("+")
    if parts[0] == "free" or "grad_align" in parts:
        config.attack.start = "none"
        config.attack.step_size = 8 / 255
    if parts[0] == "free":
        config.epochs = 88
        config.optimizer.lr = 0.04
    return config
