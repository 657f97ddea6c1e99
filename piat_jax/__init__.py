"""Adversarial training of image classifiers in JAX: PIAT, NMSE and the methods that they are compared with.

    run = piat_jax.train("embedded:nmse+piat", workdir="runs/x", epochs=3)
    model = piat_jax.load("runs/x")
    model.evaluate(images, labels, "clean,pgd20,aa")

`dir(piat_jax)` is the table of contents. Names and submodules are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Name -> the module that defines it.
_HOMES = {
    "PIAT": "averaging",
    "AutoAttack": "evaluation",
    "Classifier": "experiment.classifier",
    "Experiment": "experiment",
    "InputError": "core.checks",
    "RationalWeight": "averaging",
    "Run": "experiment",
    "bind": "attacks",
    "cw": "attacks",
    "eval_params": "averaging",
    "fgsm": "attacks",
    "interpolate": "averaging",
    "interpolate_params": "averaging",
    "interpolated": "averaging",
    "load": "experiment.loading",
    "mi_fgsm": "attacks",
    "normalized_mse": "losses",
    "pgd": "attacks",
    "train": "experiment.front",
}
_SUBMODULES = (
    *(
        "analysis",
        "attacks",
        "averaging",
        "benchmark",
        "checkpoint",
        "cli",
        "configs",
        "core",
        "data",
        "evaluation",
        "experiment",
    ),
    *("interop", "loggers", "losses", "models", "objectives", "training"),
)

__all__ = [*_HOMES, *_SUBMODULES]

if TYPE_CHECKING:
    from piat_jax.attacks import bind, cw, fgsm, mi_fgsm, pgd
    from piat_jax.averaging import PIAT, RationalWeight, eval_params, interpolate, interpolate_params, interpolated
    from piat_jax.core.checks import InputError
    from piat_jax.evaluation import AutoAttack
    from piat_jax.experiment import Experiment, Run
    from piat_jax.experiment.classifier import Classifier
    from piat_jax.experiment.front import train
    from piat_jax.experiment.loading import load
    from piat_jax.losses import normalized_mse


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
