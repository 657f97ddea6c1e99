"""Every field of a config, with its unit and default: the PIAT paper's protocol for ResNet-18 on CIFAR-10.

Where the paper is silent the default is that of its lineage (SEAT, Generalist) and marked "not stated".
"""

from ml_collections import ConfigDict

from piat_jax.cli.config import Config
from piat_jax.cli.methods import method_groups, parse_method


def get_config(method: str = "pgd_at") -> Config:
    """The protocol with `method`: parts such as "trades", "trades+piat" or "mart+awp+swa"; piat-methods lists them."""
    stack = parse_method(method)
    groups = method_groups(stack)
    config: Config = ConfigDict()
    config.method = str(stack)
    config.seed = 0
    config.epochs = 120
    config.batch_size = 128  # not stated; every public code's. The last partial batch of an epoch is dropped

    config.fsdp = False  # each device keeps a part of weights, momentum and anchor, not all: memory for communication

    config.nonfinite = "stop"  # stop, skip: what to do at a step whose loss or gradient is not finite

    config.dataset = ConfigDict()
    config.dataset.name = (
        "cifar10"  # a name (piat_jax/data/dataset_info.py), tfds:NAME, or the path of a folder or file
    )
    config.dataset.data_dir = ""  # where a named data set's files are; empty looks in the usual places
    config.dataset.train_examples = 0  # the first n; 0 = all
    config.dataset.test_examples = 0
    # Held out of training to choose the best epoch; 0 chooses on the test set. fawa decides on them, as in CFA
    config.dataset.validation_examples = 1000 if stack.average == "fawa" else 0
    config.dataset.crop_padding = 4  # pixels; 0 = no random crop
    config.dataset.padding_mode = "zeros"  # zeros, reflect
    config.dataset.flip = True  # never for digits
    config.dataset.policy = ""  # autoaugment: its CIFAR policy; "" = none
    config.dataset.cutout = 0  # pixels a side of a black square; 0 = none
    config.dataset.extra = ""  # an .npz file with generated examples (image, label), mixed into every batch; "" = none
    config.dataset.extra_fraction = 0.7  # of each batch; an epoch stays as long as it is without them
    config.dataset.stream = False  # from the host in windows of steps: for data larger than the device's memory

    config.model = ConfigDict()
    config.model.name = "resnet18"
    config.model.dtype = "float32"  # of activations: float32, bfloat16
    config.model.mean = ()  # input normalisation per channel, inside the model; () = none, "normalized into [0, 1]"
    config.model.std = ()
    # Groups of the batch that each have BatchNorm statistics of their own: as many as the GPUs of a DataParallel run
    config.model.bn_groups = 1
    config.model.weights = ""  # to start from: a file, a hub's folder or a run, as piat-convert takes them; "" = none
    config.model.options = ConfigDict()  # of this model only: width, stage_sizes, ...

    config.optimizer = ConfigDict()
    config.optimizer.lr_epochs = (0.0, 60.0, 90.0, 120.0)  # knots of the piecewise-linear schedule, in epochs
    config.optimizer.lr_values = (0.01, 0.01, 0.001, 0.0001)  # learning rate at each
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 3.5e-3  # coupled, on every parameter
    config.optimizer.max_norm = 0.0  # the gradient is scaled to this L2 norm where it is longer; 0 = never

    config.attack = ConfigDict()  # the training attack
    config.attack.eps = 8 / 255  # radius, pixels in [0, 1]; write 8/255 on the command line
    config.attack.step_size = 2 / 255
    config.attack.steps = 10
    config.attack.norm = "linf"  # linf, l2
    config.attack.start = "uniform"  # uniform, normal, none; not stated (Algorithm 1 prints none)
    config.attack.l2_rule = "exact"  # L2 steps: exact, or as codes take them: trades, awp, advertorch
    config.attack.restarts = 1
    config.attack.keep = "last"  # last, best

    # The method's own fields, as piat-methods prints them: objective, one group for each wrapper, average. Of the
    # objective, attack_batch_norm (eval, train) is BatchNorm's mode while crafting.
    config.attack.update(groups.pop("attack"))
    for group, fields in groups.items():
        config[group] = ConfigDict(fields)
        if "eps" in fields:
            config[group].eps = config.attack.get_oneway_ref("eps")

    if "ard_prm" in config:
        config.ard_prm.ard = False  # needs attention; the configs of Vision Transformers set it

    config.piat = ConfigDict()  # used where the method says piat
    config.piat.a = 1.0  # lambda_n = (a n + b) / (c n + d), Eq. 10; a = c = 0 gives the constant b / d
    config.piat.b = 1.0
    config.piat.c = 1.0
    config.piat.d = 10.0
    config.piat.first_epoch = 1  # n of the first epoch: 1 as in Algorithm 1, 0 as in the lineage's code
    config.piat.batch_stats = "interpolate"  # interpolate, keep, recompute: BatchNorm statistics; not stated
    config.piat.momentum = "keep"  # keep, reset: the optimizer's, across the write-back; not stated

    config.evaluation = ConfigDict()
    config.evaluation.every_epochs = 1  # and always after the last
    config.evaluation.attacks = ("clean", "pgd20")  # during training; NAMEsteps: pgd20, cw20, mi_fgsm10, fgsm
    config.evaluation.select = "pgd20"  # "best" is the checkpoint with the highest accuracy under this
    config.evaluation.final_attacks = ("clean", "pgd20", "cw20")  # what piat-evaluate runs by default
    config.evaluation.eps = config.attack.get_oneway_ref("eps")
    config.evaluation.step_size = config.attack.get_oneway_ref("step_size")
    config.evaluation.norm = config.attack.get_oneway_ref("norm")
    config.evaluation.restarts = 1
    config.evaluation.batch_size = 500  # examples per compiled call
    config.evaluation.precision = "highest"  # of matrix products: highest, default (may be TF32 on a GPU)

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1  # of "last", which is also saved when it is the best so far

    config.log = ConfigDict()
    config.log.steps_per_chunk = 50  # training steps between two looks at the loss; fewer if they take over 2 seconds
    config.log.tensorboard = True  # needs tensorboardX
    return config


def use_100_classes(config: Config) -> Config:
    """What the methods' codes set differently for CIFAR-100."""
    if parse_method(config.method).average == "fawa":
        # 25 a class. The worst of 100 classes may never reach a threshold, and CFA's code has none for them.
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


def use_wrn_32_10(config: Config) -> Config:
    """The paper's protocol for WRN-32-10: five blocks per group (the WRN-34-10 of others), 180 epochs."""
    config.model.name = "wrn_32_10"
    if "rat" in config:
        config.rat.head = ("fc", "dense", "kernel")
    if parse_method(config.method).base == "mart":
        config.objective.beta = 6.0
    config.epochs = 180
    config.optimizer.lr_epochs = (0.0, 90.0, 135.0, 180.0)
    config.optimizer.lr_values = (0.1, 0.1, 0.01, 0.001)
    config.optimizer.weight_decay = 7e-4
    return config


def use_vit(config: Config, name: str) -> Config:
    """The paper's protocol for Vision Transformers, that of A&P: pretrained weights, patches of 4 pixels, 40 epochs.

    A&P's code differs in two ways. TRADES and MART start 0.001 N(0, 1) away in normalised units, a quarter of ours in
    pixels. And its PGD-AT mixes images in three batches of ten, of which the PIAT paper says nothing: `mix`, whose
    defaults are A&P's, in the method. The learning rate is A&P's too, divided by 10 after epochs 35 and 38; the PIAT
    paper's text has "at the 36th and 38th epochs", and so the second an epoch before.
    """
    config.model.name = name
    config.model.mean = (0.4914, 0.4822, 0.4465)
    config.model.std = (0.2471, 0.2435, 0.2616)
    config.model.options.patch_size = 4
    config.model.options.remat = False  # True where memory is short: each block is then computed again for its gradient
    config.epochs = 40
    # A&P's code trains on the last 16 of 50,000 images as well; here they are dropped, others each epoch.
    config.batch_size = 64
    config.optimizer.lr_epochs = (0.0, 35.0, 36.0, 38.0, 39.0, 40.0)  # drops after epochs 35 and 38
    config.optimizer.lr_values = (0.1, 0.1, 0.01, 0.01, 0.001, 0.001)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.max_norm = 1.0
    if parse_method(config.method).base == "mart":
        config.objective.beta = 6.0
    if "ard_prm" in config:
        config.ard_prm.ard = True
        config.ard_prm.patch_size = config.model.options.get_oneway_ref("patch_size")
    if "rat" in config:
        config.rat.head = ("head", "kernel")
    return config
