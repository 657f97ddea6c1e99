r"""Fine-tune a clean or robust model to another data set or norm, from a file of weights or a run.

    piat-train --config=finetune:trades+piat --workdir=runs/finetuned --config.model.weights=runs/x \
        --config.model.name=preact_resnet18 --config.dataset.name=cifar100
    piat-train --config=finetune:multi_norm --workdir=runs/three_norms --config.model.weights=runs/x --config.epochs=3

`model.weights` takes the same sources as piat-convert: a PyTorch or safetensors file, a folder from the hub, or a run.
A head with another number of classes is initialised again. AdamW with a cosine schedule, lower learning rates for early
layers (layer_decay), and no decay of biases and norms: common practice, not one paper's protocol.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "pgd_at") -> ConfigDict:
    """Ten epochs of AdamW."""
    config = common.get_config(method)
    config.epochs = 10
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.lr = 1e-3
    config.optimizer.lr_warmup = 1.0
    config.optimizer.lr_every = "step"
    config.optimizer.weight_decay = 0.05
    config.optimizer.weight_decay_on = "matrices"
    config.optimizer.layer_decay = 0.75
    config.optimizer.max_norm = 1.0
    return config
