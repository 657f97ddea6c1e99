r"""Every method for Vision Transformers on 512 images of Fashion-MNIST, on a CPU: the small form of Table IV.

    piat-train --config=configs/embedded_512_vit.py:trades+ard_prm+piat --workdir=runs/embedded_512_vit/x

It starts from random weights, since the package has no pretrained ones, and stays weak: PGD-AT had 31.3 % clean and
23.4 % PGD-20 accuracy after 100 epochs (one seed).
"""

from ml_collections import ConfigDict

from piat_jax.configs import common, embedded_512


def get_config(method: str = "ard_prm+piat") -> ConfigDict:
    """embedded_512.py with the Vision Transformers' optimizer, four blocks, and the same number of epochs."""
    small = embedded_512.get_config(method)
    config = common.use_vit(embedded_512.get_config(method), "vit")
    config.model.mean = config.model.std = ()
    del config.model.options.stage_sizes, config.model.options.stem_stride
    config.model.options.width = 32
    config.model.options.depth = 4
    config.model.options.heads = 2
    config.batch_size = small.batch_size
    config.epochs = small.epochs
    config.optimizer.lr_epochs = small.optimizer.lr_epochs
    config.optimizer.lr_values = (0.1, 0.1, 0.01, 0.001)
    return config
