r"""Robustness to L-inf, L2 and L1 together: MAX, AVG, SAT, E-AT, MSD; PreActResNet-18, CIFAR-10.

    piat-train --config=cifar10_multi_norm:multi_norm+piat --workdir=runs/max
    piat-train --config=cifar10_multi_norm --workdir=runs/e_at --config.multi_norm.how=errors \
        --config.multi_norm.norms=linf,l1
    piat-train --config=cifar10_multi_norm:pgd_at --workdir=runs/msd --config.attack.name=msd
    piat-evaluate --workdir=runs/max --attacks=clean,aa-union

`multi_norm.how` is max, avg, random (SAT) or errors (E-AT). To start from a robust model, as E-AT's authors do for
three epochs: --config.model.weights=FILE --config.epochs=3. The numbers are in Croce & Hein (2022), arXiv:2105.12508;
their network uses softplus, ours ReLU.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "multi_norm") -> ConfigDict:
    """APGD with 10 steps at radii 8/255, 0.5 and 12; 80 epochs, learning rate 0.05."""
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
