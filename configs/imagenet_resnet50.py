r"""Fine-tuning of a clean ResNet-50 by PGD-AT and PIAT, ImageNet, L-inf 4/255.

    piat-train --config=imagenet_resnet50:piat --workdir=runs/resnet50_piat --config.dataset.name=~/imagenet \
        --config.model.weights=resnet50-11ad3fa6.pth
    piat-train --config=imagenet_resnet50:nmse+piat --workdir=runs/resnet50_nmse --config.dataset.name=~/imagenet \
        --config.model.weights=resnet50-11ad3fa6.pth
    piat-train --config=imagenet_resnet50 --workdir=runs/resnet50_90 --config.epochs=90 \
        --config.optimizer.schedule=step --config.optimizer.lr_drops=30,60 --config.optimizer.lr=0.1

The weights are torchvision's; `model.weights` takes the file unchanged. Attack, batch size and weight decay are those
of Salman et al. (2020), arXiv:2007.08489: PGD-3 with steps of 2/3 eps, 512 images, 1e-4. They train 90 epochs from
random weights, as the third line does; their ResNet-50 has 64.02 / 34.96 clean / AutoAttack in % on RobustBench's 5,000
images. The 20 epochs of fine-tuning and the cosine schedule from 0.02 are ours, not from a paper, and were not run at
this size.
"""

from ml_collections import ConfigDict

from piat_jax.configs import common


def get_config(method: str = "pgd_at") -> ConfigDict:
    """Twenty epochs of SGD with momentum."""
    config = common.use_imagenet(common.get_config(method))
    config.model.name = "resnet50_imagenet"
    config.model.mean, config.model.std = common.IMAGENET_MEAN, common.IMAGENET_STD
    config.attack.steps, config.attack.step_size = 3, 8 / 3 / 255
    config.epochs = 20
    config.batch_size = 512
    config.optimizer.schedule = "cosine"
    config.optimizer.lr, config.optimizer.lr_warmup, config.optimizer.lr_every = 0.02, 1.0, "step"
    config.optimizer.weight_decay = 1e-4
    return config
