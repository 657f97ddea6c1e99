r"""Singh et al. (2023), arXiv:2303.01870: ConvNeXt-T with a convolutional stem, ImageNet, L-inf 4/255.

    piat-train --config=imagenet_convnext_t --workdir=runs/convnext_t --config.dataset.name=~/imagenet \
        --config.model.weights=clean/weights.pt
    piat-train --config=imagenet_convnext_t:pgd_at+mix+ema+piat --workdir=runs/convnext_t_piat --config.epochs=50 \
        --config.optimizer.lr_warmup=10 --config.model.weights=clean/weights.pt

The second line is the protocol with PIAT, which the paper does not have, in the 50 epochs of its larger networks.
The authors start from weights that were trained on clean images with the same stem, and publish them with the robust
ones; from random weights the results are lower.

The authors' models, clean / AutoAttack in % on RobustBench's 5,000 images, 300 epochs: ConvNeXt-T 72.7 / 49.5; by
model.name: ConvNeXt-S (convnext_small_convstem, 50 epochs) 74.4 / 52.4, ConvNeXt-B (convnext_base_convstem, 300) 75.9 /
56.1. The released script has a batch of 80 images per GPU; 8 GPUs make 640.

Differences from the code: timm's RandAugment leaves out every second operation, varies the magnitude and has ranges
that grow with it, ours is torchvision's; scales of LayerNorm and of branches do not decay (in the code, all parameters
of a ConvNeXt except biases do); activations are bfloat16, not float16.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "pgd_at+mix+ema") -> ConfigDict:
    """ConvNeXt-T with two convolutions instead of patches; images are not normalised, as in the code."""
    config = common.use_singh2023(common.get_config(method))
    config.model.name = "convnext_tiny_convstem"
    return config
