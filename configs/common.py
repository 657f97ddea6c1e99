"""The base of config files: every field with its default, and protocols that several configs share.

The defaults are the PIAT paper's protocol for ResNet-18 on CIFAR-10; `piat-train --config=NAME --fields` lists every
field with its meaning. Your own file begins in the same way, in any folder:

    from piat_jax.configs import common

    def get_config(method="piat"):
        config = common.get_config(method)
        config.epochs = 60
        return config
"""

from ml_collections import ConfigDict

from piat_jax.experiment import default_config

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def get_config(method: str = "pgd_at") -> ConfigDict:
    """The protocol with `method`: parts such as "trades", "trades+piat" or "mart+awp+swa"; piat-methods lists them."""
    config = default_config(method)
    if "fawa" in config.method.split("+"):
        config.dataset.validation_examples = 1000  # fawa decides by their accuracy, as in CFA
    if "ard_prm" in config:
        config.ard_prm.ard = False  # needs attention; the configs of Vision Transformers set it
    return config


def use_100_classes(config: ConfigDict) -> ConfigDict:
    """Apply the settings that the methods' codes change for CIFAR-100."""
    if "fawa" in config.method.split("+"):
        # 25 per class. The worst of 100 classes may never reach a threshold, and CFA's code has none for CIFAR-100.
        config.dataset.validation_examples = 2500
        config.average.threshold = 0.0
    if "rat" in config:
        config.rat.kappa = 0.98
    if "ecas" in config:
        config.ecas.entropy_low, config.ecas.entropy_high = 3.35, 4.582
        if "attack_loss" in config.objective:
            config.objective.attack_loss, config.attack.start = "kl", "normal"
    if "las" in config:
        if config.objective.get("label_smoothing"):
            config.objective.label_smoothing = 0.4
        if config.las.betas:
            config.las.eps_levels, config.las.clean_reward = (5.0, 6.0, 7.0, 8.0, 9.0, 10.0), 2.0
        elif config.las.clip:
            config.las.step_counts = tuple(range(8, 16))
            config.las.interval, config.las.robust_reward, config.las.clean_reward = 10, 4.0, 2.0
        else:
            config.las.step_counts = tuple(range(3, 13))
    return config


def use_wrn_32_10(config: ConfigDict) -> ConfigDict:
    """The paper's protocol for WRN-32-10: five blocks per group (others call it WRN-34-10), 180 epochs."""
    config.model.name = "wrn_32_10"
    if "rat" in config:
        config.rat.head = ("fc", "dense", "kernel")
    if config.method.split("+")[0] == "mart":
        config.objective.beta = 6.0
    config.epochs = 180
    config.optimizer.lr_epochs = (0.0, 90.0, 135.0, 180.0)
    config.optimizer.lr_values = (0.1, 0.1, 0.01, 0.001)
    config.optimizer.weight_decay = 7e-4
    return config


def use_vit(config: ConfigDict, name: str) -> ConfigDict:
    """The paper's protocol for Vision Transformers, from A&P: pretrained weights, patches of 4 pixels, 40 epochs.

    A&P's code differs in two ways. TRADES and MART start at a distance of 0.001 N(0, 1) in normalised units, a quarter
    of ours in pixels. Its PGD-AT mixes images in three batches of ten, which the PIAT paper does not mention; add `mix`
    to the method, with A&P's values as defaults. The learning rate is A&P's too, divided by 10 after epochs 35 and 38;
    the PIAT paper has "at the 36th and 38th epochs", which puts the second drop an epoch earlier.
    """
    config.model.name = name
    config.model.mean = (0.4914, 0.4822, 0.4465)
    config.model.std = (0.2471, 0.2435, 0.2616)
    config.model.options.patch_size = 4
    config.model.options.remat = False  # True saves memory: each block is then recomputed for its gradient
    config.epochs = 40
    # A&P's code also trains on the last 16 of 50,000 images; here 16 are dropped, different ones in each epoch.
    config.batch_size = 64
    config.optimizer.lr_epochs = (0.0, 35.0, 36.0, 38.0, 39.0, 40.0)  # drops after epochs 35 and 38
    config.optimizer.lr_values = (0.1, 0.1, 0.01, 0.01, 0.001, 0.001)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.max_norm = 1.0
    if config.method.split("+")[0] == "mart":
        config.objective.beta = 6.0
    if "ard_prm" in config:
        config.ard_prm.ard = True
        config.ard_prm.patch_size = config.model.options.get_oneway_ref("patch_size")
    if "rat" in config:
        config.rat.head = ("head", "kernel")
    return config


def use_deepmind(config: ConfigDict) -> ConfigDict:
    """The common protocol of Gowal et al. (2020), Rebuffi et al. (2021) and Wang et al. (2023).

    WRN-28-10 with SiLU, Nesterov momentum, an average with decay 0.995 and the weights' statistics, attacks that see
    BatchNorm in training mode, and selection of the best epoch by CW-40 on 1,024 held-out training images.
    """
    config.model.name = "dm_wrn_28_10"
    config.model.bn_momentum = 0.01
    if config.method.split("+")[0] == "trades":
        config.objective.clean_forwards = 1
        config.attack.start = "uniform"
    config.objective.attack_batch_norm = "train"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.optimizer.weight_decay_on = "matrices"
    if "average" in config:
        if "decay" in config.average:
            config.average.decay = 0.995
        if "batch_stats" in config.average:
            config.average.batch_stats = "copy"
    config.evaluation.every_epochs = 10
    config.evaluation.attacks = ("clean", "cw40")
    config.evaluation.select = "cw40"
    config.evaluation.final_attacks = ("clean", "pgd20", "aa")
    config.dataset.validation_examples = 1024
    return config


def use_imagenet(config: ConfigDict) -> ConfigDict:
    """ImageNet-1k from files, images of 224 pixels, L-inf 4/255, activations in bfloat16.

    Five training images of each class are held out to choose the best epoch, because the field uses the validation
    images as its test set. Published runs also train on these 5,000 images.
    """
    config.dataset.name = "~/imagenet"
    config.dataset.image_size = 224
    config.dataset.crop_padding = 0
    config.dataset.workers = 16
    config.dataset.validation_examples = 5000
    config.model.dtype = "bfloat16"
    config.attack.eps = 4 / 255
    config.evaluation.every_epochs = 5
    config.evaluation.attacks = ("clean", "pgd10")
    config.evaluation.select = "pgd10"
    config.evaluation.step_size = 1 / 255
    config.evaluation.batch_size = 256
    config.evaluation.final_attacks = ("clean", "pgd20", "aa")
    return config


def use_singh2023(config: ConfigDict) -> ConfigDict:
    """The protocol of Singh et al. (2023), arXiv:2303.01870, for networks with a convolutional stem.

    APGD-2 from the clean image, AdamW, a cosine schedule with warm-up, RandAugment, random erasing, mixup or CutMix in
    every batch with label smoothing, an average with decay 0.9999. The numbers are those of the released code
    (run_train.sh, main.py and parserr.py).
    """
    use_imagenet(config)
    config.dataset.interpolation = "bicubic"
    config.dataset.policy = "randaugment"
    config.dataset.erasing = 0.25
    config.epochs = 300
    config.batch_size = 640
    config.attack.name = "apgd"
    config.attack.steps, config.attack.start = 2, "none"
    config.optimizer.name, config.optimizer.schedule = "adamw", "cosine"
    config.optimizer.lr, config.optimizer.lr_warmup, config.optimizer.lr_every = 1e-3, 20.0, "step"
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.weight_decay_on = "matrices"
    if "mix" in config:
        config.mix.prob = 1.0
        config.mix.label_smoothing = 0.1
    if config.get("average") and "warmup" in config.average:
        config.average.decay, config.average.warmup = 0.9999, False
    return config
