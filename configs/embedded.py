r"""PGD-AT, PIAT and PIAT+NMSE on 1,024 images of Fashion-MNIST, on a CPU: what `make train` runs.

    piat-train --config=configs/embedded.py:nmse+piat --workdir=runs/embedded/nmse+piat

The README has the measured numbers.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "piat") -> ConfigDict:
    """A small ResNet without augmentation, eps 0.1, trained long enough to show robust overfitting."""
    config = common.get_config(method)
    config.dataset.name = "embedded"
    config.dataset.crop_padding = 0
    config.dataset.flip = False
    config.model.name = "small_resnet"
    config.model.options.width = 8
    config.model.options.stage_sizes = (1, 1, 1)
    config.model.options.stem_stride = 2
    config.batch_size = 32
    config.epochs = 100
    config.optimizer.lr_epochs = (0.0, 50.0, 75.0, 100.0)
    config.optimizer.lr_values = (0.2, 0.2, 0.02, 0.002)
    config.optimizer.weight_decay = 5e-4
    config.attack.eps = 0.1
    config.attack.step_size = 0.025
    if "mu" in config.objective:
        # With the paper's 5, one seed of three stayed at chance level from the first epoch at this learning rate. A
        # likely reason: the gradient through a normalised logit vector grows as 1 / |z|, and logits start small. With
        # gradients clipped to norm 1 (optimizer.max_norm), or five epochs of warm-up, such a seed trains on 512 images.
        config.objective.mu = 1.0
    # The moving average spans as many epochs as in the papers, which have 391 steps per epoch; here there are 32.
    for fields in config.values():
        if isinstance(fields, ConfigDict) and fields.get("decay") == 0.999:
            fields.decay = 0.99
    if "las" in config:
        config.las.strategy = "small_resnet"
    if "lbgat" in config:
        config.lbgat.guide = "small_resnet"
    if "multi_norm" in config:
        config.multi_norm.eps_l2, config.multi_norm.step_l2 = 1.0, 0.25
        config.multi_norm.eps_l1, config.multi_norm.step_l1 = 10.0, 2.5
    if config.dataset.validation_examples:
        config.dataset.validation_examples = 128
    config.evaluation.every_epochs = 5
    config.checkpoint.every_epochs = 10
    return config
