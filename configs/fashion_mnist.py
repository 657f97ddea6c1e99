r"""Fashion-MNIST, a small ResNet, L-inf 0.1: the embedded data's experiment on all 60,000 images.

    piat-train --config=configs/fashion_mnist.py:nmse+piat --workdir=runs/fashion_mnist/nmse+piat

experiments/results/fashion_mnist has measured numbers. On a GPU, ResNet-18 is --config.model.options.width=64
--config.model.options.stage_sizes=2,2,2,2 --config.model.options.stem_stride=1.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "nmse+piat") -> ConfigDict:
    """The paper's protocol with the embedded data's network and radius."""
    config = common.get_config(method)
    config.dataset.name = "fashion_mnist"
    config.dataset.crop_padding = 2
    config.dataset.flip = True
    config.model.name = "small_resnet"
    config.model.options.width = 16
    config.model.options.stage_sizes = (1, 1, 1)
    config.model.options.stem_stride = 2
    config.optimizer.lr_values = (0.1, 0.1, 0.01, 0.001)
    config.optimizer.weight_decay = 5e-4
    config.attack.eps = 0.1
    config.attack.step_size = 0.025
    return config
