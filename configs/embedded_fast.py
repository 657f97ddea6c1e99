r"""One-step training on the 1,024 images of `embedded.py`, at a radius at which FGSM-RS collapses within 40 epochs.

    piat-train --config=embedded_fast:pgd_at --workdir=runs/fast/fgsm_rs
    piat-train --config=embedded_fast:pgd_at+piat --workdir=runs/fast/fgsm_rs_piat
    piat-train --config=embedded_fast --workdir=runs/fast/n_fgsm --config.attack.name=n_fgsm

[experiments/results/recipes/fast](../experiments/results/recipes/fast/README.md) has the curves.
"""

from ml_collections import ConfigDict

from piat_jax.configs import embedded


def get_config(method: str = "pgd_at") -> ConfigDict:
    """FGSM-RS at 0.3: a step of 0.375 from a uniform start, the triangular schedule of fast_adversarial."""
    config = embedded.get_config(method)
    config.model.options.width = 16
    config.epochs = 40
    config.optimizer.schedule = "triangular"
    config.optimizer.lr = 0.2
    config.optimizer.lr_every = "step"
    config.objective.attack_batch_norm = "train"
    config.attack.eps = 0.3
    config.attack.steps = 1
    config.attack.step_size = 0.375
    config.evaluation.step_size = 0.04
    config.evaluation.every_epochs = 2
    config.checkpoint.every_epochs = 40
    parts = config.method.split("+")
    if parts[0] == "free" or "grad_align" in parts:
        config.attack.start = "none"
        config.attack.step_size = 0.3
    return config
