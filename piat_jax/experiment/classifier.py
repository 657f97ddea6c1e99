"""A network with its weights, ready for use: `load` makes one of a run, an exported folder or a file of weights."""

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax import models
from piat_jax.analysis.grids import draw_grid
from piat_jax.checkpoint import Checkpoints
from piat_jax.core.checks import InputError, check_choice, check_count, check_images, check_labels
from piat_jax.core.files import expanded
from piat_jax.core.pixels import as_float
from piat_jax.core.rng import named_key
from piat_jax.core.types import Array, TrainState, Variables
from piat_jax.data import Split
from piat_jax.data.dataset_info import KNOWN
from piat_jax.evaluation import AutoAttack, AutoAttackUnion
from piat_jax.evaluation.blocks import Blocks, Rows
from piat_jax.evaluation.minimum_norm import MinimumNormAttack
from piat_jax.experiment import config
from piat_jax.experiment.evaluation import UNION_PARTS, evaluation_attack, evaluator, seen_by_attacks
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.fields import Fields
from piat_jax.experiment.methods import Stack
from piat_jax.experiment.run import ON_DISK, Run, parse_checkpoint
from piat_jax.experiment.validate import problems
from piat_jax.interop import (
    About,
    LoadReport,
    load_weights,
    save_safetensors,
    save_torch,
    write_exported,
    write_onnx,
)
from piat_jax.interop.card import radius
from piat_jax.interop.hub import check_push, fetch, is_on_hub, parse_hub, push
from piat_jax.interop.names import is_head
from piat_jax.interop.published import PUBLISHED, Published, is_published, published
from piat_jax.interop.recognised import count_classes, recognise
from piat_jax.interop.tensors import Tensors
from piat_jax.interop.weights import read_config, read_weights, sizes_of
from piat_jax.objectives import METHODS, WRAPPERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Origin(NamedTuple):
    """Where a classifier comes from."""

    about: About
    experiment: Experiment  # how it is evaluated
    report: LoadReport  # what became of the weights' file
    published: str = ""  # the name that the network is published by, if that was given or is the file's
    why: str = ""  # where the name of a file has decided: what it was taken for


class _Beside:
    """Something that a pytree carries along; to JAX all of them are alike, so that none compiles anew."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Beside)

    def __hash__(self) -> int:
        return 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # by identity, so that it has a hash: jax.jit(model) asks for one
class Classifier:
    """A network with its weights: a pytree, and itself a `logits_fn` for every attack and for `AutoAttack.run`.

    >>> from piat_jax.models import create
    >>> net = create("mlp", num_classes=3, hidden=(4,))
    >>> weights = net.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    >>> model = Classifier.of(net, weights, About(model="mlp", num_classes=3, image_shape=(2, 2, 1)))
    >>> model.predict(np.zeros((5, 2, 2, 1), np.uint8)).shape
    (5,)
    >>> jax.jit(lambda model, images: model(images))(model, jnp.zeros((5, 2, 2, 1))).shape
    (5, 3)
    """

    model: models.LinenModel = dataclasses.field(metadata={"static": True})
    variables: Variables
    beside: _Beside = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        model: models.LinenModel,
        variables: Variables,
        about: About,
        *,
        experiment: Experiment | None = None,
        report: LoadReport = LoadReport((), (), (), "model"),  # noqa: B008
        published: str = "",
        why: str = "",
    ) -> "Classifier":
        """A classifier of a network and its weights; without an experiment, evaluated as the PIAT paper does."""
        experiment = experiment or Experiment(method=Stack("pgd_at"))
        return cls(model, variables, _Beside(Origin(about, experiment, report, published, why)))

    @property
    def origin(self) -> Origin:
        """Where it comes from."""
        return self.beside.value

    @property
    def about(self) -> About:
        """What is known of it."""
        return self.origin.about

    def __repr__(self) -> str:
        about = self.about
        known = ", ".join(filter(None, (about.dataset, about.method, about.threat, about.checkpoint, about.source)))
        shape = "x".join(map(str, about.image_shape))
        parameters = sum(np.size(leaf) for leaf in jax.tree.leaves(self.variables.params))
        return f"{about.model} ({parameters:,} parameters), {shape} -> {about.num_classes} classes" + (
            f"; {known}" if known else ""
        )

    def __call__(self, images: Array) -> Array:
        """Logits `[B, K]` of `images[B, H, W, C]`, floats in [0, 1]; may be traced."""
        return self.model.apply(self.variables.params, self.variables.model_state, images, train=False)[0]

    def logits(self, images: Any, *, batch_size: int = 500) -> np.ndarray:
        """Logits `[N, K]`, float32.

        Args:
          images: `[N, H, W, C]` uint8, or floats in [0, 1].
          batch_size: images at once.

        Raises:
          InputError: images of another shape or outside [0, 1].
        """
        pixels = self._pixels(images)
        blocks = self._blocks(min(batch_size, len(pixels)), self.origin.experiment)
        parts = [blocks.logits(pixels[start : start + blocks.size]) for start in range(0, len(pixels), blocks.size)]
        return np.concatenate(parts)

    def predict(self, images: Any, *, batch_size: int = 500) -> np.ndarray:
        """The class of each image, `[N]`; arguments as of `logits`."""
        return self.logits(images, batch_size=batch_size).argmax(axis=1)

    def attack(self, images: Any, labels: Any, attack: str = "pgd20", *, seed: int = 0, **fields: Any) -> np.ndarray:
        """Adversarial images `[N, H, W, C]`, floats in [0, 1].

        Args:
          images: `[N, H, W, C]` uint8, or floats in [0, 1].
          labels: `[N]` classes.
          attack: as piat-evaluate calls it: pgd20, cw20, fgsm, aa, apgd-ce50.
          seed: of all that is drawn.
          **fields: of config.evaluation, in place of the run's: eps, step_size, norm, restarts, batch_size, precision,
            attack_precision.
        """
        experiment = self._experiment(seed, fields)
        pixels, labels = self._pixels(images), self._labels(labels, len(images))
        bound = evaluation_attack(experiment, attack)
        if bound is None:  # "clean"
            return pixels
        if isinstance(bound, AutoAttackUnion):
            raise InputError(f"attack={attack!r} makes images in three norms; give one of {', '.join(UNION_PARTS)}")
        if isinstance(bound, MinimumNormAttack):
            raise InputError(f"attack={attack!r} has no radius; call such as attacks.fmn, which take this as logits_fn")
        if isinstance(bound, AutoAttack):
            seen = seen_by_attacks(experiment, self.model, self.variables)
            return bound.run(self, pixels, labels, attack_logits_fn=seen).images
        blocks = self._blocks(min(experiment.evaluation.batch_size, len(pixels)), experiment)
        key, found = named_key(jax.random.key(seed), "evaluate"), []
        for start in range(0, len(pixels), blocks.size):
            part = slice(start, start + blocks.size)
            indices = np.arange(len(pixels), dtype=np.uint32)[part]
            rows = Rows(pixels[part], labels[part], indices, np.ones(len(indices), bool), None)
            found.append(blocks.attack(bound, rows, key, bound.options["eps"], bound.options["norm"])[0])
        return np.concatenate(found)

    def evaluate(
        self, images: Any, labels: Any, attacks: str | Sequence[str] = "clean,pgd20", *, seed: int = 0, **fields: Any
    ) -> dict[str, float]:
        """The accuracy under each attack, as a share; arguments as of `attack`, `attacks` a list or text with commas.

        >>> from piat_jax.models import create
        >>> net = create("mlp", num_classes=2, hidden=())
        >>> weights = net.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
        >>> model = Classifier.of(net, weights, About(model="mlp", num_classes=2, image_shape=(2, 2, 1)))
        >>> images = np.zeros((4, 2, 2, 1), np.uint8)
        >>> model.evaluate(images, model.predict(images), "clean")
        {'clean': 1.0}
        """
        experiment = self._experiment(seed, fields)
        split = Split(self._pixels(images), self._labels(labels, len(images)))
        correct = evaluator(experiment, self.model, split)
        names = attacks.split(",") if isinstance(attacks, str) else attacks
        built = {name.strip(): evaluation_attack(experiment, name.strip()) for name in names}
        return {name: float(correct(self.variables, attack).mean()) for name, attack in built.items()}

    def show(
        self,
        images: Any,
        labels: Any = None,
        attack: str = "pgd20",
        count: int = 8,
        *,
        names: Sequence[str] = (),
        seed: int = 0,
        **fields: Any,
    ) -> "Figure":
        """A figure of matplotlib: clean images, what an attack makes of them, and the difference, with the classes.

        A notebook shows it by itself; elsewhere `.savefig` keeps it. Black and white in the difference are -eps and eps
        in L-inf; in other norms it is scaled to its largest value in each image.

        Args:
          images: `[N, H, W, C]` uint8, or floats in [0, 1].
          labels: `[N]` classes; those that are predicted for the clean images, unless given.
          attack: as of `attack`.
          count: the first so many images are shown.
          names: of the classes; those of a data set that is known by name, or their numbers, unless given.
          seed: as of `attack`.
          **fields: as of `attack`.

        Raises:
          InputError: as `attack`; names that are not one for each class.
        """
        check_count("count", count, 1)
        if len(names) not in (0, self.about.num_classes):
            raise InputError(f"names has {len(names)} names for {self.about.num_classes} classes; give one for each")
        if labels is not None:
            labels = self._labels(labels, len(images))[:count]
        pixels = self._pixels(np.asarray(images)[:count])
        predicted = self.predict(pixels)
        attacked = self.attack(pixels, predicted if labels is None else labels, attack, seed=seed, **fields)
        names = names or self._class_names()
        evaluation = self._experiment(seed, fields).evaluation
        in_ball = evaluation.norm.lower() == "linf" and attack not in UNION_PARTS

        def named(classes: np.ndarray) -> list[str]:
            return [str(names[each] if len(names) else each) for each in classes]

        return draw_grid(
            pixels,
            attacked,
            eps=evaluation.eps if in_ball else None,
            true=() if labels is None else named(labels),
            predicted=named(predicted),
            predicted_attacked=named(self.predict(attacked)),
        )

    def to_torch(self, path: str | Path) -> None:
        """Write a state_dict for PyTorch; mean and std, where there are some, stand before the network there."""
        save_torch(expanded(path), self.model, self.variables)

    def to_safetensors(self, folder: str | Path) -> None:
        """Write a folder with model.safetensors, config.json and a model card."""
        save_safetensors(expanded(folder), self.model, self.variables, self.about)

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None, license: str = ""
    ) -> str:
        """Put what `to_safetensors` writes into a repository of the Hugging Face hub, and return its address.

        Args:
          repository: `user/name`; made where it does not exist. Files of the same names there are replaced.
          private: whether one that is made is private.
          token: with write access; without, that of HF_TOKEN or of `hf auth login`.
          license: of the weights, as the hub calls it, such as "mit"; "" says nothing.

        Raises:
          InputError: huggingface_hub is not installed, there is no token or it may not write there, or the hub cannot
            be reached.
        """
        check_push(repository, token)
        about = dataclasses.replace(self.about, license=license or self.about.license)
        name = parse_hub(repository).repository
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "export"
            save_safetensors(exported, self.model, self.variables, about, repository=name)
            return push(exported, name, private=private, token=token)

    def to_onnx(self, path: str | Path, *, nchw: bool = False) -> None:
        """Write an ONNX model of images in [0, 1], `[B, H, W, C]`, or with `nchw` channels first."""
        write_onnx(expanded(path), self, self.about.image_shape, nchw=nchw)

    def to_jax(self, path: str | Path) -> None:
        """Write a compiled function of JAX, which is called without this library."""
        write_exported(expanded(path), self, self.about.image_shape)

    def to_run(self, folder: str | Path, experiment: Experiment | str) -> None:
        """Write a run of no epochs, which every command takes: an experiment with this network, and its weights.

        Args:
          folder: the run's.
          experiment: what it is evaluated on, or the name of a config that says it; there encoded images are cropped
            as those that the network was published for, where it was loaded by a published name.

        Raises:
          InputError: the experiment does not fit the network.
        """
        if isinstance(experiment, str):
            name = {"model.name": self.origin.published} if self.origin.published else {}
            experiment = config.load(experiment, name, trains=False)
        module, target = self.model.module, expanded(folder)
        normalization = {name: tuple(getattr(module, name, ())) for name in ("mean", "std")}
        network = dataclasses.replace(
            experiment.model, name=self.about.model, options=Fields(self.about.options), **normalization
        )
        experiment = dataclasses.replace(experiment, model=network)
        if found := problems(experiment, trains=False):
            raise InputError("\n".join(found))
        # Beside it first: a run without its weights would be one that was stopped.
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        run = Run(partial)
        run.open(experiment)
        zero = jnp.zeros((), jnp.int32)
        state = TrainState(step=zero, epoch=zero, **self.variables._asdict(), opt_state={}, objective_state={})
        info = {"epoch": 0, "method": str(experiment.method), "scores": {}, "source": self.about.source}
        run.checkpoints.save_async(state, info, best=True)
        run.checkpoints.wait()
        partial.rename(target)

    def _experiment(self, seed: int, fields: Mapping[str, Any]) -> Experiment:
        """How it is evaluated, with other fields of the evaluation."""
        experiment = self.origin.experiment
        known = [each.name for each in dataclasses.fields(experiment.evaluation)]
        for name in fields:
            check_choice("field", name, known)
        evaluation = dataclasses.replace(experiment.evaluation, **fields)
        return dataclasses.replace(experiment, seed=seed, evaluation=evaluation)

    def _pixels(self, images: Any) -> np.ndarray:
        """Images as float32 in [0, 1]."""
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != tuple(self.about.image_shape) or not len(images):
            shape = ", ".join(map(str, ("N", *self.about.image_shape)))
            raise InputError(f"images have the shape {images.shape}; give [{shape}], N at least 1")
        if images.dtype != np.uint8:
            check_images("images", images)
        return np.asarray(as_float(jnp.asarray(images)))

    def _labels(self, labels: Any, count: int) -> np.ndarray:
        labels = np.asarray(labels)
        check_labels("labels", labels, np.zeros((count, self.about.num_classes)))
        return labels.astype(np.int32)

    def _class_names(self) -> tuple[str, ...]:
        """The classes of a data set that is known by name; () where they are not known."""
        dataset = "fashion_mnist" if self.about.dataset == "embedded" else self.about.dataset
        found = KNOWN[dataset].class_names if dataset in KNOWN else ()
        return found if len(found) == self.about.num_classes else ()

    def _blocks(self, size: int, experiment: Experiment) -> Blocks:
        return Blocks(self, size, jax.devices(), experiment.evaluation.precision)


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
) -> Classifier:
    """The network in a run, an exported folder or a file of weights.

    Args:
      source: the folder of a run; a folder with model.safetensors; a file (.safetensors, .pt, .pth, .bin, .npz); or
        `hf:user/name` or `hf:user/name@revision`, a repository of the Hugging Face hub.
      checkpoint: of a run: "best" or "final"; "final:swa" is its further average swa.
      model: the network, as configs call it, or a published name such as "timm:convnext_tiny", which says what follows
        too, where the file does not. A file that is called as RobustBench calls it, Carmon2019Unlabeled.pt, needs none.
        All this is for weights: a run says it itself.
      num_classes: its classes.
      options: of the network: `{"width": 4}`.
      mean: of the input normalisation, one for each channel; () is none.
      std: the same for the standard deviation.
      image_shape: height, width, channels; (32, 32, 3) unless something knows better.
      adapt: make patches, positions, windows and head of a transformer fit where they differ; of others, the head.
      unsafe_pickle: read a PyTorch file that holds more than tensors. That may run any code that is in it.

    Raises:
      InputError: nothing is there, it does not fit, or it is not known which network the weights are of.
    """
    kept, average = parse_checkpoint("final" if checkpoint == "last" else checkpoint)
    path = fetch(source) if is_on_hub(source) else expanded(source)
    if not path.exists():
        raise InputError(f"{path} is no file and no folder; give weights or a run")
    model = model or _called_there(source, path)
    row, tensors, why = (published(model) if is_published(model) else None), None, ""
    # Read when it is first asked for, and once.
    read = functools.cache(functools.partial(read_weights, path, unsafe_pickle=unsafe_pickle))
    if not model and path.is_file() and "piat_jax" not in read_config(path):
        recognised = recognise(path, lambda: count_classes(path, read()))
        if recognised:
            model, row, why = recognised
    given = {"model": model, "num_classes": num_classes, "options": options, "mean": mean, "std": std}
    if (path / Checkpoints.FOLDER).is_dir():
        for name, value in given.items():
            if value:
                raise InputError(f"--{name} does not go with a run, whose config says it")
        net, about, experiment = _of_run(Run(path), kept, average, image_shape)
    else:
        experiment = _against(row) if row else None
        net, about = _of_weights(path, row, read, **given, image_shape=image_shape, adapt=adapt)
        about = dataclasses.replace(about, source=str(source)) if is_on_hub(source) else about
        tensors = read()
    shape = about.image_shape
    options = {"adapt": adapt, "checkpoint": kept, "average": average, "tensors": tensors}
    # Given ones, if they are none, stay none.
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
    """The published name of one of timm's repositories on the hub; "" of any other."""
    if not is_on_hub(source) or "piat_jax" in read_config(path):
        return ""
    user, _, name = parse_hub(source).repository.partition("/")
    return f"{user}:{name}" if user == "timm" and f"timm:{name}" in PUBLISHED else ""


def _of_run(
    run: Run, kept: str, average: str, image_shape: Sequence[int] | None
) -> tuple[models.LinenModel, About, Experiment]:
    """What a run's config and files say."""
    experiment, info = run.experiment(), run.checkpoints.info(kept)
    classes, channels = _sizes(info["shapes"])
    results = run.evaluation()
    name = next(name for name, on_disk in ON_DISK.items() if on_disk == kept)
    name = f"{name}:{average}" if average else name
    result = results.get("checkpoints", {}).get(name, {})
    known = result.get("epoch") == info["epoch"]
    attack = experiment.attack
    # Of weights that were imported, the config says what they are evaluated on, not how they were trained.
    trained = "source" not in info
    steps = f", {attack.steps} steps" if hasattr(attack, "steps") else ""
    threat = f"{attack.norm}, eps {radius(attack.eps)}{steps}"
    about = About(
        model=experiment.model.name,
        num_classes=classes,
        image_shape=_shape(image_shape) or _shape_of(experiment, channels),
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
    """How a published network is evaluated: under the threat that it was trained against, where that is known."""
    plain = Experiment(method=Stack("pgd_at"))
    if not row.norm:
        return plain
    fields = {"eps": row.eps, "step_size": row.eps / 4, "norm": row.norm}
    return plain.with_fields({f"evaluation.{name}": value for name, value in fields.items()})


def _papers(experiment: Experiment) -> tuple[str, ...]:
    """Who made the parts of a method, a line each."""
    stack = experiment.method
    abouts = [METHODS.about(stack.base), *(WRAPPERS.about(name) for name in stack.wrappers)]
    return tuple(f"{about.title}: {about.paper}" for about in abouts if about.paper)


def _shape_of(experiment: Experiment, channels: int) -> tuple[int, int, int]:
    """The images that an experiment evaluates on."""
    size = experiment.dataset.image_size
    return (size, size, 3) if size else _known_shape(experiment.dataset.name, channels)


def _known_shape(dataset: str, channels: int) -> tuple[int, int, int]:
    """The images of a data set that is known by name, in the network's channels where its first layer says them."""
    dataset = "fashion_mnist" if dataset == "embedded" else dataset
    if dataset not in KNOWN:
        raise InputError(
            f"--image_shape is missing: the run was trained on {dataset!r}, whose images are of no known size; "
            "give height,width,channels, such as 32,32,3"
        )
    height, width, published = KNOWN[dataset].image_shape
    return height, width, channels or published


def _sizes(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Classes and channels of a network, from its first and last layer; 0 where these do not say."""
    kernels = {path: shape for path, shape in shapes.items() if path.endswith("/kernel")}
    classes = next((shape[-1] for path, shape in kernels.items() if is_head(path)), 0)
    stems = ("conv1", "init_conv", "conv_2d", "patch_embed", "stem", "stem_0")
    # A stem of several convolutions: the first one sees the fewest channels.
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
    """What was given, or config.json beside the weights says, or the file itself, or the row of a published name."""
    written = read_config(path)
    ours = written.get("piat_jax", {})
    name = row.model if row else model or ours.get("model", "")
    if not name:
        raise InputError("--model is missing: weights do not say which network they are of; see --help")
    check_choice("model", name, models.MODELS)
    found, side = _of_file(path, name, read()) if row or not adapt else ({}, 0)
    classes = num_classes or written.get("num_classes", 0)
    if row:
        classes = classes or found.get("num_classes", row.num_classes)
    if not classes:
        raise InputError("--num_classes is missing; give the number of classes, such as 10")
    # The file's own shapes, but where they are to be adapted.
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
    """Options of the network and the side of its images, as far as the file's shapes say them."""
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
