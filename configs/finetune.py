r"""Fine-tuning a clean or robust model to another data set or norm, from a file of weights or a run.

    piat-train --config=finetune:trades+piat --workdir=runs/finetuned --config.model.weights=runs/x \
        --config.model.name=preact_resnet18 --config.dataset.name=cifar100
    piat-train --config=finetune:multi_norm --workdir=runs/three_norms --config.model.weights=runs/x --config.epochs=3

`model.weights` takes what piat-convert takes: a file of PyTorch's or safetensors, a hub's folder, or a run; a head of
another number of classes begins anew. AdamW with a cosine, lower rates for what lies near the images (layer_decay), and
no decay on biases and norms: the habits of the field, not of one paper.
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
