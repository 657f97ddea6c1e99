r"""Every method on 512 images of Fashion-MNIST, on a CPU: what `python -m experiments.all_methods` runs.

    piat-train --config=configs/embedded_512.py:trades+awp+piat --workdir=runs/trades+awp+piat

Half the images of embedded.py and a shorter attack, so that a run takes about a minute on one core. With so few images,
training overfits early. experiments/results/all_methods has the measured numbers.
"""

from ml_collections import ConfigDict

from piat_jax.configs import embedded


def get_config(method: str = "piat") -> ConfigDict:
    """The embedded data's protocol with 512 images and PGD-5, evaluated every 10 epochs."""
    config = embedded.get_config(method)
    config.dataset.train_examples = 512
    config.attack.steps = 5
    config.attack.step_size = 0.04
    config.evaluation.step_size = 0.025
    config.evaluation.every_epochs = 10
    config.checkpoint.every_epochs = 20
    return config
