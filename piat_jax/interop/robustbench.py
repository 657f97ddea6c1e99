"""RobustBench's CIFAR networks with supported architectures, by data set, threat model and architecture."""

from typing import Any, NamedTuple

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
RAW: Statistics = ((), ())
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
MADRY: Statistics = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
DDN: Statistics = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
LONG10: Statistics = (
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
    (0.24703225141799082, 0.24348516474564, 0.26158783926049628),
)
CIFAR100: Statistics = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
DEEPMIND100: Statistics = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
LONG100: Statistics = (
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)
EPS = {"Linf": 8 / 255, "L2": 0.5}
"""The radius of each threat model, for pixels in [0, 1]."""


class Kind(NamedTuple):
    """Networks that differ only in their weights."""

    dataset: str
    threat: str
    model: str
    statistics: Statistics
    names: str  # separated by spaces
    options: tuple[tuple[str, Any], ...] = ()


WIDE_34_15 = (("blocks_per_group", 5), ("widen_factor", 15))
WIDE_34_20 = (("blocks_per_group", 5), ("widen_factor", 20))
KINDS = (
    Kind(
        "cifar10", "Linf", "resnet18", RAW, "Sehwag2021Proxy_R18 Addepalli2021Towards_RN18 Addepalli2022Efficient_RN18"
    ),
    Kind("cifar10", "Linf", "resnet50", MADRY, "Engstrom2019Robustness"),
    Kind("cifar10", "Linf", "preact_resnet18_v1", RAW, "Andriushchenko2020Understanding"),
    Kind("cifar10", "Linf", "preact_resnet18_v1", CIFAR10, "Wong2020Fast"),
    Kind(
        "cifar10",
        "Linf",
        "wrn_28_10",
        RAW,
        "Carmon2019Unlabeled Sehwag2020Hydra Wang2020Improving Zhang2020Geometry Sridhar2021Robust "
        "Wu2020Adversarial_extra",
    ),
    Kind("cifar10", "Linf", "wrn_28_10", HALF, "Hendrycks2019Using"),
    Kind(
        "cifar10",
        "Linf",
        "wrn_34_10",
        RAW,
        "Zhang2019Theoretically Zhang2019You Zhang2020Attacks Huang2020Self Sitawarin2020Improving "
        "Cui2020Learnable_34_10 Addepalli2021Towards_WRN34 Wu2020Adversarial Sehwag2021Proxy Chen2021LTD_WRN34_10 "
        "Jia2022LAS-AT_34_10 Addepalli2022Efficient_WRN_34_10 Cui2023Decoupled_WRN-34-10 Chen2024Data_WRN_34_10",
    ),
    Kind("cifar10", "Linf", "wrn_34_10", CIFAR10, "Chen2020Efficient"),
    Kind("cifar10", "Linf", "wide_resnet", RAW, "Sridhar2021Robust_34_15", WIDE_34_15),
    Kind("cifar10", "Linf", "wrn_34_20", RAW, "Cui2020Learnable_34_20 Chen2021LTD_WRN34_20 Chen2024Data_WRN_34_20"),
    Kind("cifar10", "Linf", "wrn_34_20", CIFAR10, "Rice2020Overfitting"),
    Kind("cifar10", "Linf", "wrn_70_16", RAW, "Jia2022LAS-AT_70_16"),
    Kind(
        "cifar10",
        "Linf",
        "dm_preact_resnet18",
        CIFAR10,
        "Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_extra Rade2021Helper_R18_ddpm Gowal2021Improving_R18_ddpm_100m",
    ),
    Kind(
        "cifar10",
        "Linf",
        "dm_wrn_28_10",
        CIFAR10,
        "Gowal2020Uncovering_28_10_extra Rebuffi2021Fixing_28_10_cutmix_ddpm Rade2021Helper_ddpm "
        "Gowal2021Improving_28_10_ddpm_100m Pang2022Robustness_WRN28_10 Wang2023Better_WRN-28-10 "
        "Xu2023Exploring_WRN-28-10 Cui2023Decoupled_WRN-28-10",
    ),
    Kind("cifar10", "Linf", "dm_wrn_34_10", CIFAR10, "Rade2021Helper_extra"),
    Kind("cifar10", "Linf", "dm_wide_resnet", CIFAR10, "Gowal2020Uncovering_34_20", WIDE_34_20),
    Kind(
        "cifar10",
        "Linf",
        "dm_wrn_70_16",
        CIFAR10,
        "Gowal2020Uncovering_70_16 Gowal2020Uncovering_70_16_extra Rebuffi2021Fixing_70_16_cutmix_ddpm "
        "Rebuffi2021Fixing_70_16_cutmix_extra Gowal2021Improving_70_16_ddpm_100m Pang2022Robustness_WRN70_16 "
        "Wang2023Better_WRN-70-16",
    ),
    Kind("cifar10", "L2", "resnet18", RAW, "Sehwag2021Proxy_R18"),
    Kind("cifar10", "L2", "resnet50", MADRY, "Engstrom2019Robustness"),
    Kind("cifar10", "L2", "resnet50", LONG10, "Augustin2020Adversarial"),
    Kind("cifar10", "L2", "preact_resnet18", CIFAR10, "Rice2020Overfitting"),
    Kind("cifar10", "L2", "wrn_28_10", DDN, "Rony2019Decoupling"),
    Kind("cifar10", "L2", "wrn_34_10", RAW, "Wu2020Adversarial Sehwag2021Proxy"),
    Kind("cifar10", "L2", "wrn_34_10", LONG10, "Augustin2020Adversarial_34_10 Augustin2020Adversarial_34_10_extra"),
    Kind("cifar10", "L2", "dm_preact_resnet18", CIFAR10, "Rebuffi2021Fixing_R18_cutmix_ddpm Rade2021Helper_R18_ddpm"),
    Kind("cifar10", "L2", "dm_wrn_28_10", CIFAR10, "Rebuffi2021Fixing_28_10_cutmix_ddpm Wang2023Better_WRN-28-10"),
    Kind(
        "cifar10",
        "L2",
        "dm_wrn_70_16",
        CIFAR10,
        "Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm "
        "Rebuffi2021Fixing_70_16_cutmix_extra Wang2023Better_WRN-70-16",
    ),
    Kind("cifar100", "Linf", "preact_resnet18", LONG100, "Rice2020Overfitting"),
    Kind("cifar100", "Linf", "preact_resnet18", RAW, "Addepalli2021Towards_PARN18"),
    Kind("cifar100", "Linf", "wrn_28_10", HALF, "Hendrycks2019Using"),
    Kind(
        "cifar100",
        "Linf",
        "wrn_34_10",
        RAW,
        "Cui2020Learnable_34_10_LBGAT0 Cui2020Learnable_34_10_LBGAT6 Sitawarin2020Improving "
        "Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10",
    ),
    Kind("cifar100", "Linf", "wrn_34_10", CIFAR100, "Chen2020Efficient"),
    Kind("cifar100", "Linf", "wrn_34_10", LONG100, "Wu2020Adversarial"),
    Kind("cifar100", "Linf", "wrn_34_20", RAW, "Cui2020Learnable_34_20_LBGAT6"),
    Kind("cifar100", "Linf", "dm_preact_resnet18", DEEPMIND100, "Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_ddpm"),
    Kind("cifar100", "Linf", "dm_wrn_28_10", DEEPMIND100, "Rebuffi2021Fixing_28_10_cutmix_ddpm"),
    Kind(
        "cifar100",
        "Linf",
        "dm_wrn_70_16",
        DEEPMIND100,
        "Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm",
    ),
)
"""Facts from RobustBench's model_zoo/cifar10.py and cifar100.py, without networks that normalise each image
separately, ensembles, other architectures, and networks without adversarial training."""
