r"""Robust to L-inf, L2 and L1 at once: MAX, AVG, SAT, E-AT, MSD; PreActResNet-18, CIFAR-10.

    piat-train --config=cifar10_multi_norm:multi_norm+piat --workdir=runs/max
    piat-train --config=cifar10_multi_norm --workdir=runs/e_at --config.multi_norm.how=errors \
        --config.multi_norm.norms=linf,l1
    piat-train --config=cifar10_multi_norm:pgd_at --workdir=runs/msd --config.attack.name=msd
    piat-evaluate --workdir=runs/max --attacks=clean,aa-union

`multi_norm.how` is max, avg, random (SAT) or errors (E-AT). From a robust model, as E-AT's authors do in three epochs:
--config.model.weights=FILE --config.epochs=3. Croce & Hein (2022), arXiv:2105.12508, have the numbers; their network
has softplus in place of ReLU, ours has ReLU.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "multi_norm") -> ConfigDict:
    """APGD with 10 steps at 8/255, 0.5 and 12, 80 epochs, rate 0.05."""
    config = common.get_config(method)
    config.model.name = "preact_resnet18"
    config.epochs = 80
    config.attack.name = "apgd"
    config.optimizer.schedule = "triangular"
    config.optimizer.lr = 0.05
    config.optimizer.lr_every = "step"
    config.optimizer.weight_decay = 5e-4
    config.evaluation.final_attacks = ("clean", "aa-union")
    return config
