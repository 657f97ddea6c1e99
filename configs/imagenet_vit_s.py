r"""Singh et al. (2023), arXiv:2303.01870: ViT-S with a convolutional stem, ImageNet, L-inf 4/255.

    piat-train --config=imagenet_vit_s --workdir=runs/vit_s --config.dataset.name=~/imagenet \
        --config.model.weights=clean/weights.pt
    piat-train --config=imagenet_vit_s:pgd_at+mix+ema+piat --workdir=runs/vit_s_piat --config.epochs=50 \
        --config.optimizer.lr_warmup=10 --config.model.weights=clean/weights.pt

The second line is the protocol with PIAT, which the paper does not have. The authors' models, clean / AutoAttack in %
on RobustBench's 5,000 images, 300 epochs: ViT-S 72.5 / 48.1; ViT-B (model.name vit_base_convstem) 76.3 / 54.7. They
start from weights trained on clean images. imagenet_convnext_t.py lists the differences from the code; here the same
parameters decay as in the code.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "pgd_at+mix+ema") -> ConfigDict:
    """ViT-S with four convolutions instead of patches; images are normalised as in the published network."""
    config = common.use_singh2023(common.get_config(method))
    config.model.name = "vit_small_convstem"
    config.model.options.patch_size = 16
    config.model.mean, config.model.std = common.IMAGENET_MEAN, common.IMAGENET_STD
    return config
