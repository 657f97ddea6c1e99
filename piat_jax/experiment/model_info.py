"""The model description for RobustBench's leaderboard, filled in from a run."""

from collections.abc import Mapping
from typing import Any

from piat_jax.core.nested import in_255ths
from piat_jax.data import KNOWN, Split
from piat_jax.evaluation import Robustness
from piat_jax.experiment.experiment import Experiment
from piat_jax.models import MODELS

FILE = "model_info.json"
LISTED = 5000
"""Number of images in RobustBench's list for ImageNet."""
THREATS = {"linf": "Linf", "l2": "L2"}
"""RobustBench's threat models by norm, which are also its folders' names."""


def is_whole(name: str, test: Split, limited: bool, *, listed: bool = False) -> bool:
    """Whether a split holds all test images of its data set.

    Args:
      name: of the data set.
      test: the images and labels that were attacked.
      limited: whether only the first n were requested; ignored if the data set's published size is known.
      listed: whether the images come from a list, which must be as long as RobustBench's list for ImageNet.
    """
    if listed:
        return len(test.labels) == LISTED
    return len(test.labels) == KNOWN[name].test if name in KNOWN else not limited


def is_for_robustbench(found: Robustness, *, whole: bool) -> bool:
    """Whether RobustBench accepts an AutoAttack result: standard version, entire test set, L-inf or L2."""
    if not whole:
        return False
    settings = found.settings
    precise = "attack_precision" not in settings and "attack_network" not in settings
    return precise and settings["version"] == "standard" and settings["norm"] in THREATS


def model_info(experiment: Experiment, dataset: str, found: Robustness) -> dict[str, Any]:
    """The fields of RobustBench's model_info/DATASET/THREAT/NAME.json; "" if a run does not have the value.

    Args:
      experiment: the one that was trained.
      dataset: its data set.
      found: AutoAttack's result.

    Source: https://github.com/RobustBench/robustbench, model_info and leaderboard/template.py.
    """
    eps = found.settings["eps"]
    title = MODELS.about(experiment.model.name).title.removesuffix(" (v1)").replace("WRN-", "WideResNet-")
    fields = experiment.dataset
    generated = (
        f"It uses generated images in training, {fields.extra_fraction:.0%} of each batch." if fields.extra else ""
    )
    pretrained = "It starts from pretrained weights." if experiment.model.weights else ""
    footnote = " ".join(filter(None, [generated, pretrained]))
    return {
        "link": "",
        "name": "",
        "authors": "",
        # RobustBench does not count generated images; the data of pretrained weights is unknown.
        "additional_data": "" if experiment.model.weights else False,
        "number_forward_passes": 1,
        "dataset": dataset,
        "venue": "",
        "architecture": title,
        "eps": (in_255ths("evaluation.eps", eps) if found.settings["norm"] == "linf" else "") or f"{eps:.6g}",
        "clean_acc": f"{100 * found.clean_accuracy:.2f}",
        "reported": "",
        "autoattack_acc": f"{100 * found.accuracy:.2f}",
        **({"footnote": footnote} if footnote else {}),
        "unreliable": bool(found.findings),
    }


def place_for(info: Mapping[str, Any], found: Robustness) -> str:
    """The path at which RobustBench keeps this file.

    >>> place_for({"dataset": "cifar10"}, type("Found", (), {"settings": {"norm": "l2"}}))
    'model_info/cifar10/L2/NAME.json'
    """
    return f"model_info/{info['dataset']}/{THREATS[found.settings['norm']]}/NAME.json"
