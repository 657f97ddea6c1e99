"""The model card of an export: the network, its measured accuracies and their limits, and its usage."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from piat_jax.core.nested import in_255ths
from piat_jax.data.dataset_info import KNOWN
from piat_jax.interop.names import network_of
from piat_jax.interop.weights import SAFETENSORS
from piat_jax.models import LinenModel

SIZES = ("tiny", "small", "base", "large")
# How the published code creates the same network.
ORIGINALS = {
    "resnet18": "robustbench.model_zoo.architectures.resnet.ResNet18()",
    "resnet50": "robustbench.model_zoo.architectures.resnet.ResNet50()",
    "preact_resnet18_v1": "robustbench.model_zoo.architectures.resnet.PreActResNet(PreActBlock, [2, 2, 2, 2])",
    "preact_resnet18": "robustbench.model_zoo.architectures.resnet.PreActResNet("
    "PreActBlockV2, [2, 2, 2, 2], bn_before_fc=True)",
    "dm_preact_resnet18": "robustbench.model_zoo.architectures.dm_wide_resnet.DMPreActResNet(activation_fn=Swish)",
    **{
        f"wrn_{depth}_{width}": "robustbench.model_zoo.architectures.wide_resnet.WideResNet("
        # The paper's WRN-32-10 is called WRN-34-10 elsewhere.
        f"depth={34 if depth == 32 else depth}, widen_factor={width})"
        for depth, width in ((28, 10), (32, 10), (34, 10), (34, 20), (70, 16))
    },
    **{
        f"dm_wrn_{depth}_{width}": "robustbench.model_zoo.architectures.dm_wide_resnet.DMWideResNet("
        f"depth={depth}, width={width}, activation_fn=Swish)"
        for depth, width in ((28, 10), (34, 10), (70, 16))
    },
    "resnet18_imagenet": "torchvision.models.resnet18()",
    "resnet50_imagenet": "torchvision.models.resnet50()",
    "wrn_50_2": "torchvision.models.wide_resnet50_2()",
    **{f"convnext_{size}": f'timm.create_model("convnext_{size}")' for size in SIZES},
    **{f"swin_{size}": f'timm.create_model("swin_{size}_patch4_window7_224")' for size in SIZES},
    "xcit_s12": 'timm.create_model("xcit_small_12_p16_224")',
}
HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "mnist": "ylecun/mnist",
    "svhn": "ufldl-stanford/svhn",
}
"""The hub's names of data sets."""
PIAT = """@article{liu_piat,
  title = {Parameter Interpolation Adversarial Training for Robust Image Classification},
  author = {Liu, Xin and Yang, Yichen and He, Kun and Hopcroft, John E.}
}"""
SOFTWARE = """@misc{piat_jax,
  title = {piat\\_jax: adversarial training of image classifiers in JAX},
  author = {{The piat\\_jax authors}}
}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """The facts on a network in an export, besides its weights; empty fields are left out."""

    model: str  # its name in `models.create`
    num_classes: int
    image_shape: tuple[int, int, int]  # height, width, channels
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of `models.create`, without mean and std
    dataset: str = ""
    method: str = ""
    threat: str = ""  # the threat model of its training, such as "linf, eps 8/255"
    checkpoint: str = ""
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by attack, fractions
    num_examples: int = 0  # number of examples behind the accuracies
    aa_examples: int = 0  # number of examples for AutoAttack, if different
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the attacks: norm, eps, step_size, ...
    chosen_on_test: bool = False  # whether the checkpoint was chosen by its accuracy on the test images
    papers: tuple[str, ...] = ()  # of the training methods: "TRADES: Zhang et al. (2019), arXiv:1901.08573"
    license: str = ""  # of the weights, by its name on the hub: "mit"
    source: str = ""


def model_card(model: LinenModel, about: About, parameters: int, *, repository: str = "") -> str:
    """The README of an export, with the hub's metadata at the top.

    Args:
      model: the network.
      about: facts on the network.
      parameters: number of its parameters.
      repository: `user/name` on the hub, if it will be uploaded.
    """
    name = f"{about.model}{f' on {about.dataset}' if about.dataset else ''}"
    parts = (
        f"# {name}",
        f"| | |\n|---|---|\n{_facts(model, about, parameters)}",
        _accuracy(about),
        "## Limits\n\n" + "\n".join(f"* {line}" for line in limits(about)),
        _use(model, about, repository),
        _citation(about),
    )
    return f"---\n{_metadata(about, repository)}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def normalization_of(model: LinenModel, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A network's input normalisation, mean and standard deviation; 0 and 1 if it has none."""
    mean, std = getattr(model.module, "mean", ()), getattr(model.module, "std", ())
    return (mean, std) if mean else ((0.0,) * channels, (1.0,) * channels)


def radius(eps: float) -> str:
    """A radius in the usual notation.

    >>> radius(8 / 255), radius(0.5), radius(0.1)
    ('8/255', '0.5', '0.1')
    """
    return in_255ths("eps", float(eps)) or f"{eps:.4g}"


def how_attacked(name: str, settings: Mapping[str, Any]) -> str:
    """The settings of an attack in words.

    >>> how_attacked("pgd20", {"norm": "linf", "eps": 8 / 255, "step_size": 2 / 255, "restarts": 1})
    'linf, eps 8/255, 20 steps of 2/255'
    >>> how_attacked("aa", {"norm": "l2", "eps": 0.5}), how_attacked("clean", {"norm": "l2", "eps": 0.5})
    ('AutoAttack, l2, eps 0.5', '')
    """
    if name == "clean" or not settings:
        return ""
    match = re.fullmatch(r"(.*?)(\d*)", name)
    assert match
    kind, number = match.groups()
    if kind == "aa-union":
        return "AutoAttack under each of linf, l2, l1"
    if kind in ("aa-linf", "aa-l2", "aa-l1"):
        return f"AutoAttack, {kind.removeprefix('aa-')}"
    found = [{"aa": "AutoAttack", "aa-plus": "AutoAttack+"}.get(kind, ""), str(settings.get("norm", ""))]
    if "eps" in settings:
        found.append(f"eps {radius(settings['eps'])}")
    if number:
        steps = f"{number} {'queries' if kind == 'square' else 'steps'}"
        own = kind in ("pgd", "cw") and "step_size" in settings
        found.append(f"{steps} of {radius(settings['step_size'])}" if own else steps)
    if kind in ("pgd", "cw") and settings.get("restarts", 1) > 1:
        found.append(f"{settings['restarts']} restarts")
    return ", ".join(filter(None, found))


def limits(about: About) -> Iterator[str]:
    """The limits of the numbers, one line each."""
    if not about.accuracy:
        yield "Neither its clean nor its robust accuracy was measured."
    robust = [name for name in about.accuracy if name != "clean"]
    if about.accuracy and not robust:
        yield "It was not attacked; its robustness is unknown."
    if robust and not any(name in ("aa", "aa-plus") or name.startswith("aa-") for name in robust):
        yield "AutoAttack was not run; the accuracy under weaker attacks overestimates the robustness."
    if about.accuracy and about.dataset in KNOWN and 0 < about.num_examples < KNOWN[about.dataset].test:
        whole = KNOWN[about.dataset].test
        yield f"The accuracies are for the first {about.num_examples:,} of {whole:,} test images."
    if robust and 0 < about.aa_examples < about.num_examples and any(map(is_autoattack, robust)):
        yield f"AutoAttack was run on the first {about.aa_examples:,} of these."
    if about.chosen_on_test:
        yield "The epoch was chosen by the accuracy on the test images, which biases this accuracy upwards."
    if robust and "norm" in about.settings and "aa-union" not in robust:
        eps = radius(about.settings["eps"]) if "eps" in about.settings else "this radius"
        yield f"The robustness in norms other than {about.settings['norm']} and at radii above {eps} is unknown."
    yield "The numbers do not cover natural corruptions, other data or patches."


def is_autoattack(name: str) -> bool:
    """Whether this is AutoAttack or a member of it, which has a separate number of examples.

    >>> is_autoattack("aa"), is_autoattack("apgd-ce50"), is_autoattack("pgd20")
    (True, True, False)
    """
    return name.startswith(("aa", "apgd-", "fab", "square"))


def _facts(model: LinenModel, about: About, parameters: int) -> str:
    height, width, channels = about.image_shape
    mean, std = normalization_of(model, channels)
    plain = set(mean) == {0.0} and set(std) == {1.0}
    facts = {
        "Network": f"{about.model}, {parameters:,} parameters",
        "Input": f"{height} x {width} pixels, {channels} channel(s), in [0, 1]",
        "Normalisation": "none" if plain else f"(x - mean) / std, mean {list(mean)}, std {list(std)}",
        "Classes": about.num_classes,
        "Data": about.dataset,
        "Training": about.method,
        "Trained against": about.threat,
        "Checkpoint": about.checkpoint,
        "Made from": about.source,
    }
    return "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value)


def _accuracy(about: About) -> str:
    if not about.accuracy:
        return ""
    rows = []
    for name, value in about.accuracy.items():
        count = (about.aa_examples if is_autoattack(name) else 0) or about.num_examples
        how = how_attacked(name, about.settings)
        rows.append(f"| {name} | {100 * value:.2f} % | {f'{count:,}' if count else ''} | {how} |")
    return "## Accuracy\n\n| attack | accuracy | test images | settings |\n|---|---|---|---|\n" + "\n".join(rows)


def _use(model: LinenModel, about: About, repository: str) -> str:
    mean, std = normalization_of(model, about.image_shape[2])
    plain = set(mean) == {0.0} and set(std) == {1.0}
    original = ORIGINALS.get(about.model, "")
    classes = 10 if original.startswith("robustbench.") else 1000  # its default
    comment = f"  # for instance {original}" if original and about.num_classes == classes else ""
    before = "images" if plain else "(images - mean) / std"
    if network_of(model).startswith("Swish"):  # the published class includes the normalisation
        before, comment = "images", comment.replace("activation_fn", f"mean={mean}, std={std}, activation_fn")
    options = "".join(f", {name}={value!r}" for name, value in about.options.items())
    where = f'"hf:{repository}"' if repository else "folder"
    file = f'hf_hub_download("{repository}", "{SAFETENSORS}")' if repository else f'"{SAFETENSORS}"'
    fetch = "    from huggingface_hub import hf_hub_download\n" if repository else ""
    return f"""## Use

With piat_jax, in which the normalisation is part of the network:

    import piat_jax

    model = piat_jax.load({where})  # images [B, H, W, C] in [0, 1] -> logits
    model.evaluate(images, labels, "clean,pgd20")

The bare network is `piat_jax.models.create({about.model!r}, num_classes={about.num_classes}{options})`.

With PyTorch (RobustBench, timm), in the network of the same name:

{fetch}    from safetensors.torch import load_file

    net.load_state_dict(load_file({file})){comment}
    logits = net.eval()({before})  # images [B, C, H, W] in [0, 1]"""


def _citation(about: About) -> str:
    of_piat = {"piat", "nmse"} & set(re.split(r"[+,\s]", about.method))
    entries = "\n\n".join(filter(None, (PIAT if of_piat else "", SOFTWARE)))
    papers = "".join(f"* {paper}\n" for paper in about.papers)
    return f"## Citation\n\n{papers}{chr(10) if papers else ''}```bibtex\n{entries}\n```"


def _metadata(about: About, repository: str) -> str:
    """The hub's metadata, as YAML (a superset of JSON)."""
    found: dict[str, Any] = {"library_name": "piat_jax"}
    if about.license:
        found["license"] = about.license
    found["pipeline_tag"] = "image-classification"
    found["tags"] = ["image-classification", "adversarial-robustness", "jax", "pytorch", "safetensors"]
    dataset = HUB_DATASETS.get(about.dataset, "")
    if dataset:
        found["datasets"] = [dataset]
    if about.accuracy:
        found["metrics"] = ["accuracy"]
    if about.accuracy and about.dataset:
        metrics = [
            {"type": "accuracy", "name": _metric(name, about), "value": round(100 * value, 2)}
            for name, value in about.accuracy.items()
        ]
        task = {"type": "image-classification", "name": "Image classification"}
        data = {"type": dataset or about.dataset, "name": about.dataset, "split": "test"}
        name = repository.rpartition("/")[2] or about.model
        found["model-index"] = [{"name": name, "results": [{"task": task, "dataset": data, "metrics": metrics}]}]
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in found.items())


def _metric(name: str, about: About) -> str:
    how = how_attacked(name, about.settings)
    return "Clean accuracy" if name == "clean" else f"Accuracy under {name}" + (f" ({how})" if how else "")
