r"""Singh et al. (2023), arXiv:2303.01870: ViT-S with a stem of convolutions, ImageNet, L-inf 4/255.

    piat-train --config=imagenet_vit_s --workdir=runs/vit_s --config.dataset.name=~/imagenet \
        --config.model.weights=clean/weights.pt
    piat-train --config=imagenet_vit_s:pgd_at+mix+ema+piat --workdir=runs/vit_s_piat --config.epochs=50 \
        --config.optimizer.lr_warmup=10 --config.model.weights=clean/weights.pt

The second line is the protocol with PIAT, which the paper does not have. The authors' models, clean / AutoAttack in %
on RobustBench's 5,000 images, 300 epochs: ViT-S 72.5 / 48.1; ViT-B (model.name vit_base_convstem) 76.3 / 54.7. They
begin with weights trained on clean images. imagenet_convnext_t.py says what differs from the code; what decays is the
same here.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "pgd_at+mix+ema") -> ConfigDict:
    """ViT-S with four convolutions in place of patches; images are normalised, as of the published network."""
    config = common.use_singh2023(common.get_config(method))
    config.model.name = "vit_small_convstem"
    config.model.options.patch_size = 16
    config.model.mean, config.model.std = common.IMAGENET_MEAN, common.IMAGENET_STD
    return config
