"""Load a network from a run, an exported folder, a file of weights or a repository of the hub."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from piat_jax import models
from piat_jax.analysis.runs import CONFIG
from piat_jax.checkpoint import Checkpoints
from piat_jax.core.checks import InputError, check_choice
from piat_jax.core.files import expanded
from piat_jax.data.dataset_info import KNOWN
from piat_jax.experiment.classifier import Classifier
from piat_jax.experiment.config import define
from piat_jax.experiment.data import load_test
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.methods import Stack
from piat_jax.experiment.run import ON_DISK, Run, parse_checkpoint, read_json
from piat_jax.interop import (
    About,
    load_weights,
)
from piat_jax.interop.card import radius
from piat_jax.interop.hub import fetch, is_on_hub, parse_hub
from piat_jax.interop.names import is_head
from piat_jax.interop.published import PUBLISHED, Published, is_published, published
from piat_jax.interop.recognised import count_classes, recognise
from piat_jax.interop.tensors import Tensors
from piat_jax.interop.weights import read_config, read_weights, sizes_of
from piat_jax.objectives import METHODS, WRAPPERS

MOST_LISTED = 5


def load(
    source: str | Path,
    *,
    checkpoint: str = "best",
    model: str = "",
    num_classes: int = 0,
    options: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_shape: Sequence[int] | None = None,
    adapt: bool = False,
    unsafe_pickle: bool = False,
    config: str | Path = "",
) -> Classifier:
    """Load the network in a run, an exported folder, a file of weights or a repository of the hub.

    Args:
      source: the folder of a run; a folder with model.safetensors; a file (.safetensors, .pt, .pth, .bin, .npz); or
        `hf:user/name` or `hf:user/name@revision`, a repository of the Hugging Face hub.
      checkpoint: of a run: "best" or "final"; "final:swa" is its further average swa.
      model: the network's name in configs, or a published name such as "timm:convnext_tiny", which also determines the
        following arguments if the file does not. A file with RobustBench's name (Carmon2019Unlabeled.pt) needs no
        model. This and the following arguments are for weights; for a run, its config has them.
      num_classes: number of classes.
      options: of the network: `{"width": 4}`.
      mean: of the input normalisation, one per channel; () = none.
      std: the same for the standard deviation.
      image_shape: height, width, channels; (32, 32, 3) unless the file or the name says otherwise.
      adapt: adapt a transformer's patches, positions, windows and head if they do not fit; of other networks, the head.
      unsafe_pickle: read a PyTorch file that holds more than tensors. This may run any code in the file.
      config: the file that defines the run's method or network, "mine.py"; it is executed. Importing it does too.

    Raises:
      InputError: the source does not exist or does not fit, or the weights' network is unknown.
    """
    kept, average = parse_checkpoint("final" if checkpoint == "last" else checkpoint)
    path = fetch(source) if is_on_hub(source) else expanded(source)
    if not path.exists():
        raise InputError(f"{path} is not a file or a folder; give weights or a run")
    model = model or _called_there(source, path)
    row, tensors, why = (published(model) if is_published(model) else None), None, ""
    # Read once, on first use.
    read = functools.cache(functools.partial(read_weights, path, unsafe_pickle=unsafe_pickle))
    if not model and path.is_file() and "piat_jax" not in read_config(path):
        recognised = recognise(path, lambda: count_classes(path, read()))
        if recognised:
            model, row, why = recognised
    given = {"model": model, "num_classes": num_classes, "options": options, "mean": mean, "std": std}
    if config:
        define(os.fspath(config), Run(path))
    if (path / Checkpoints.FOLDER).is_dir():
        for name, value in given.items():
            if value:
                raise InputError(f"{name}={value!r} does not go with a run, whose config says it; leave it out")
        net, about, experiment = _of_run(Run(path), kept, average, image_shape)
    else:
        _check_no_run(path)
        experiment = _against(row) if row else None
        net, about = _of_weights(path, row, read, **given, image_shape=image_shape, adapt=adapt)
        about = dataclasses.replace(about, source=str(source)) if is_on_hub(source) else about
        tensors = read()
    shape = about.image_shape
    options = {"adapt": adapt, "checkpoint": kept, "average": average, "tensors": tensors}
    # A given () remains ().
    normalization = (row.mean, row.std) if row and mean is None and std is None else ()
    try:
        loaded = load_weights(path, net, shape, **options, normalization=normalization)
    except InputError as error:
        if not why:
            raise
        raise InputError(f"{error}; it was {why}; model= (--model) names another") from error
    origin = {"experiment": experiment, "report": loaded.report, "published": model if row else "", "why": why}
    return Classifier.of(loaded.model, loaded.variables, about, **origin)


def _called_there(source: str | Path, path: Path) -> str:
    """The published name of a timm repository on the hub; "" for any other source."""
    if not is_on_hub(source) or "piat_jax" in read_config(path):
        return ""
    user, _, name = parse_hub(source).repository.partition("/")
    return f"{user}:{name}" if user == "timm" and f"timm:{name}" in PUBLISHED else ""


def _of_run(
    run: Run, kept: str, average: str, image_shape: Sequence[int] | None
) -> tuple[models.LinenModel, About, Experiment]:
    """Load a network from a run's config and files."""
    experiment, info = run.experiment(), run.checkpoints.info(kept)
    classes, channels = _sizes(info["shapes"])
    results = run.evaluation()
    name = next(name for name, on_disk in ON_DISK.items() if on_disk == kept)
    name = f"{name}:{average}" if average else name
    result = results.get("checkpoints", {}).get(name, {})
    known = result.get("epoch") == info["epoch"]
    attack = experiment.attack
    # For imported weights, the config says how to evaluate them, not how they were trained.
    trained = "source" not in info
    steps = f", {attack.steps} steps" if hasattr(attack, "steps") else ""
    threat = f"{attack.norm}, eps {radius(attack.eps)}{steps}"
    about = About(
        model=experiment.model.name,
        num_classes=classes,
        image_shape=_shape(image_shape) or run.image_shape() or _shape_of(experiment, channels),
        options=dict(experiment.model.options),
        dataset=experiment.dataset.name,
        method=f"{experiment.method}, {experiment.epochs} epochs" if trained else "",
        threat=threat if trained else "",
        checkpoint=f"{name}, epoch {info['epoch']}" if trained else "",
        accuracy=result.get("accuracy", {}) if known else {},
        num_examples=results.get("num_examples", 0),
        aa_examples=results.get("aa_examples", 0),
        settings=results.get("settings", {}) if known else {},
        chosen_on_test=trained and kept == "best" and experiment.monitor == "test",
        papers=_papers(experiment) if trained else (),
        source=info.get("source", ""),
    )
    return experiment.build_model(classes, dtype="float32"), about, experiment


def _against(row: Published) -> Experiment:
    """The experiment that evaluates a published network: in the threat model of its training, if that is known."""
    plain = Experiment(method=Stack("pgd_at"))
    if not row.norm:
        return plain
    fields = {"eps": row.eps, "step_size": row.eps / 4, "norm": row.norm}
    return plain.with_fields({f"evaluation.{name}": value for name, value in fields.items()})


def _papers(experiment: Experiment) -> tuple[str, ...]:
    """The papers of a method's parts, one line each."""
    stack = experiment.method
    abouts = [METHODS.about(stack.base), *(WRAPPERS.about(name) for name in stack.wrappers)]
    return tuple(f"{about.title}: {about.paper}" for about in abouts if about.paper)


def _shape_of(experiment: Experiment, channels: int) -> tuple[int, int, int]:
    """The shape of the images that an experiment evaluates on: by the name of the data set, or from the data."""
    size = experiment.dataset.image_size
    known = (size, size, 3) if size else _known_shape(experiment.dataset.name, channels)
    if known:
        return known
    try:
        height, width, channels = load_test(experiment).test.images.shape[1:]
    except InputError as error:
        raise InputError(
            "image_shape is missing: the run does not store it, and its data cannot be read; give height, width and "
            f"channels, such as image_shape=(20, 20, 3) (--image_shape=20,20,3). {error}"
        ) from error
    return height, width, channels


def _known_shape(dataset: str, channels: int) -> tuple[int, int, int] | None:
    """The image shape of a data set known by name, with the network's channels if its first layer shows them."""
    dataset = "fashion_mnist" if dataset == "embedded" else dataset
    if dataset not in KNOWN:
        return None
    height, width, published = KNOWN[dataset].image_shape
    return height, width, channels or published


def _check_no_run(path: Path) -> None:
    """Raise InputError for the folder of a run without checkpoints, or for a folder of runs."""
    if not path.is_dir():
        return
    if Run(path).exists and "method" in read_json(path / CONFIG):
        raise InputError(f"{path} holds a run without a checkpoint; continue it with piat-train --resume {path}")
    if runs := sorted(str(found.parent) for found in path.glob(f"*/{Checkpoints.FOLDER}")):
        more = ", ..." if len(runs) > MOST_LISTED else ""
        raise InputError(f"{path} is a folder of runs; give one of them: {', '.join(runs[:MOST_LISTED])}{more}")


def _sizes(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Number of classes and channels of a network, from its last and first layer; 0 if they do not show it."""
    kernels = {path: shape for path, shape in shapes.items() if path.endswith("/kernel")}
    classes = next((shape[-1] for path, shape in kernels.items() if is_head(path)), 0)
    stems = ("conv1", "init_conv", "conv_2d", "patch_embed", "stem", "stem_0")
    # In a stem of several convolutions, the first has the fewest input channels.
    channels = [shape[2] for path, shape in kernels.items() if path.split("/")[1] in stems and len(shape) == 4]
    return classes, min(channels, default=0)


def _of_weights(
    path: Path,
    row: Published | None,
    read: Callable[[], Tensors],
    *,
    model: str,
    num_classes: int,
    options: Mapping[str, Any] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_shape: Sequence[int] | None,
    adapt: bool,
) -> tuple[models.LinenModel, About]:
    """Load weights, described by the arguments, config.json next to them, the file itself or a published name."""
    written = read_config(path)
    ours = written.get("piat_jax", {})
    name = row.model if row else model or ours.get("model", "")
    if not name:
        raise InputError(
            "model is missing: weights do not say which network they are of; give its name, such as model='resnet18' "
            "(--model=resnet18)"
        )
    check_choice("model", name, models.MODELS)
    found, side = _of_file(path, name, read()) if row or not adapt else ({}, 0)
    classes = num_classes or written.get("num_classes", 0)
    if row:
        classes = classes or found.get("num_classes", row.num_classes)
    if not classes:
        raise InputError(
            "num_classes is missing; give the number of classes, such as num_classes=10 (--num_classes=10)"
        )
    # The shapes in the file, unless they will be adapted.
    known: dict[str, Any] = {} if adapt else {key: value for key, value in found.items() if key != "num_classes"}
    known = {**(row.options if row else {}), **known, **(ours.get("options", {}) if name == ours.get("model") else {})}
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    asked = set(options or {}) & known.keys()
    known |= dict(options or {})
    normalization: dict[str, Any] = {}
    if mean is not None or std is not None:
        normalization = {"mean": tuple(mean or ()), "std": tuple(std or ())}
    if adapt or asked or not side:
        side = row.size if row else 32
    channels, height, width = written.get("pretrained_cfg", {}).get("input_size", (3, side, side))
    shape = _shape(image_shape) or (height, width, channels)
    about = About(model=name, num_classes=classes, image_shape=shape, options=known, source=path.name)
    if row and row.norm and classes == row.num_classes and not adapt:
        about = dataclasses.replace(about, dataset=row.dataset, threat=f"{row.norm}, eps {radius(row.eps)}")
    return models.create(name, num_classes=classes, **normalization, **known), about


def _of_file(path: Path, name: str, tensors: Tensors) -> tuple[dict[str, Any], int]:
    """The network's options and image size, as far as the file's shapes determine them."""
    module, fixed = models.MODELS[name]
    options, side = sizes_of(path, module.__name__, tensors)
    return {key: value for key, value in options.items() if key not in fixed}, side


def _shape(image_shape: Sequence[int] | None) -> tuple[int, int, int] | None:
    if not image_shape:
        return None
    if len(image_shape) != 3:
        raise InputError(f"image_shape={tuple(image_shape)} is not height, width, channels, such as (32, 32, 3)")
    height, width, channels = image_shape
    return height, width, channels
