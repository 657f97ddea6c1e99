"""The data sets with the networks and protocols that items are run on."""

from collections.abc import Mapping

import numpy as np

from experiments.engine.items import Block, Setting

AA_BLOCKS = 80  # images; the embedded data have 1,000
SMALL_DIFFERS = (
    "Ours is 512 images of Fashion-MNIST, a ResNet of 19,810 parameters, PGD-5 and 100 epochs, so only the signs of "
    "differences compare."
)


def embedded(
    beside: Block,
    *,
    name: str = "embedded_512",
    title: str = "512 embedded images of Fashion-MNIST, small ResNet, L-inf 0.1",
    overrides: Mapping[str, str] | None = None,
) -> Setting:
    """The embedded data, evaluated every five epochs."""
    fields = {"evaluation.every_epochs": "5", **(overrides or {})}
    how = {"differs": SMALL_DIFFERS, "aa_blocks": AA_BLOCKS}
    return Setting(name, title, "configs/embedded_512.py", beside, fields, **how)


def multiplied(factors: Mapping[int, float]) -> dict[str, str]:
    """The embedded data's learning rate times a factor by epoch, linear between the epochs named, as overrides.

    >>> multiplied({1: 0.5, 50: 0.5, 100: 1.0})
    {'optimizer.lr_epochs': '1,50,100', 'optimizer.lr_values': '0.1,0.1,0.002'}
    """
    rates = np.interp(list(factors), (0, 50, 75, 100), (0.2, 0.2, 0.02, 0.002)) * list(factors.values())
    return {
        "optimizer.lr_epochs": ",".join(map(str, factors)),
        "optimizer.lr_values": ",".join(f"{rate:.4g}" for rate in rates),
    }


def steps(drops: tuple[int, ...], epochs: int, values: tuple[float, ...]) -> dict[str, str]:
    """A learning rate that falls at once after `drops` epochs, as overrides: epoch 100 is the last before (100, ...).

    >>> fields = steps((100, 150), 200, (0.1, 0.01, 0.001))
    >>> fields["optimizer.lr_epochs"], fields["optimizer.lr_values"]
    ('0,100,101,150,151,200', '0.1,0.1,0.01,0.01,0.001,0.001')
    """
    knots = [0, *(knot for drop in drops for knot in (drop, drop + 1)), epochs]
    return {
        "epochs": str(epochs),
        "optimizer.lr_epochs": ",".join(map(str, knots)),
        "optimizer.lr_values": ",".join(f"{value:.6g},{value:.6g}" for value in values),
    }
