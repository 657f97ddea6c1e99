"""A network with its weights, ready for use; `loading.load` builds it from a run, an exported folder or a file."""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax import models
from piat_jax.analysis.grids import draw_grid
from piat_jax.core.checks import InputError, check_choice, check_count, check_images, check_labels, check_radius
from piat_jax.core.files import expanded
from piat_jax.core.pixels import as_float
from piat_jax.core.rng import named_key
from piat_jax.core.types import Array, TrainState, Variables
from piat_jax.data import Split
from piat_jax.data.dataset_info import KNOWN
from piat_jax.evaluation import AutoAttack, AutoAttackUnion
from piat_jax.evaluation.blocks import Blocks, Rows
from piat_jax.evaluation.minimum_norm import MinimumNormAttack
from piat_jax.experiment import config, console
from piat_jax.experiment.evaluation import UNION_PARTS, evaluation_attack, evaluator, seen_by_attacks
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.fields import Fields
from piat_jax.experiment.methods import Stack
from piat_jax.experiment.run import Run
from piat_jax.experiment.validate import problems
from piat_jax.interop import (
    About,
    LoadReport,
    save_safetensors,
    save_torch,
    write_exported,
    write_onnx,
)
from piat_jax.interop.hub import check_push, parse_hub, push

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Origin(NamedTuple):
    """Where a classifier comes from."""

    about: About
    experiment: Experiment  # says how to evaluate it
    report: LoadReport  # how the tensors of the weights' file were used
    published: str = ""  # the network's published name, if given or taken from the file's name
    why: str = ""  # if the file's name decided: what it was recognised as


class _Beside:
    """Data that a pytree carries along; all instances compare equal, so that JAX does not recompile for another one."""

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
        """A classifier from a network and its weights; without an experiment, evaluated as in the PIAT paper."""
        experiment = experiment or Experiment(method=Stack("pgd_at"))
        return cls(model, variables, _Beside(Origin(about, experiment, report, published, why)))

    @property
    def origin(self) -> Origin:
        """Where the classifier comes from."""
        return self.beside.value

    @property
    def about(self) -> About:
        """What is known about the network and its weights."""
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
        """Logits `[B, K]` of `images[B, H, W, C]`, uint8 or floats in [0, 1]; may be traced."""
        images = as_float(images) if images.dtype == jnp.uint8 else images
        return self.model.apply(self.variables.params, self.variables.model_state, images, train=False)[0]

    def logits(self, images: Any, *, batch_size: int = 500) -> np.ndarray:
        """Logits `[N, K]`, float32.

        Args:
          images: `[N, H, W, C]` uint8, or floats in [0, 1].
          batch_size: images per call.

        Raises:
          InputError: the images have another shape or leave [0, 1].
        """
        pixels = self._pixels(images)
        blocks = self._blocks(min(batch_size, len(pixels)), self.origin.experiment)
        parts = [blocks.logits(pixels[start : start + blocks.size]) for start in range(0, len(pixels), blocks.size)]
        return np.concatenate(parts)

    def predict(self, images: Any, *, batch_size: int = 500) -> np.ndarray:
        """The predicted class of each image, `[N]`; arguments as for `logits`."""
        return self.logits(images, batch_size=batch_size).argmax(axis=1)

    def attack(self, images: Any, labels: Any, attack: str = "pgd20", *, seed: int = 0, **fields: Any) -> np.ndarray:
        """Adversarial images `[N, H, W, C]`, floats in [0, 1].

        Args:
          images: `[N, H, W, C]` uint8, or floats in [0, 1].
          labels: `[N]` classes.
          attack: piat-evaluate's name of it: pgd20, cw20, fgsm, aa, apgd-ce50.
          seed: of all random draws.
          **fields: replace fields of config.evaluation: eps, step_size, norm, restarts, batch_size, precision,
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
            raise InputError(f"attack={attack!r} has no radius; call attacks.fmn or the like, with this as logits_fn")
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
        """The accuracy under each attack, in [0, 1]; arguments as for `attack`, `attacks` a list or text with commas.

        What makes a result doubtful is printed on stderr.

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
        correct = evaluator(experiment, self.model, split, note=console.note)
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
        """A matplotlib figure: clean images, adversarial images and their difference, with the classes.

        A notebook shows it by itself; elsewhere `.savefig` keeps it. Black and white in the difference are -eps and eps
        in L-inf; in other norms it is scaled to its largest value in each image.

        Args:
          images: `[N, H, W, C]` uint8, or floats in [0, 1].
          labels: `[N]` classes; by default those predicted for the clean images.
          attack: as for `attack`.
          count: number of images shown, from the first; all if there are fewer.
          names: of the classes; by default those of a data set known by name, or their numbers.
          seed: as for `attack`.
          **fields: as for `attack`.

        Raises:
          InputError: as for `attack`; or there is not one name per class.
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
        """Write a state_dict for PyTorch; mean and std, if there are any, become a layer before the network."""
        save_torch(expanded(path), self.model, self.variables)

    def to_safetensors(self, folder: str | Path) -> None:
        """Write a folder with model.safetensors, config.json and a model card."""
        save_safetensors(expanded(folder), self.model, self.variables, self.about)

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None, license: str = ""
    ) -> str:
        """Upload the files of `to_safetensors` to a repository of the Hugging Face hub, and return its address.

        Args:
          repository: `user/name`; created if it does not exist. Files with the same names are replaced.
          private: whether a newly created repository is private.
          token: with write access; by default that of HF_TOKEN or of `hf auth login`.
          license: of the weights, by its name on the hub, such as "mit"; "" states none.

        Raises:
          InputError: huggingface_hub is not installed, there is no token with write access, or the hub cannot be
            reached.
        """
        check_push(repository, token)
        about = dataclasses.replace(self.about, license=license or self.about.license)
        name = parse_hub(repository).repository
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "export"
            save_safetensors(exported, self.model, self.variables, about, repository=name)
            return push(exported, name, private=private, token=token)

    def to_onnx(self, path: str | Path, *, nchw: bool = False) -> None:
        """Write an ONNX model for images in [0, 1], `[B, H, W, C]`, or channels first with `nchw`."""
        write_onnx(expanded(path), self, self.about.image_shape, nchw=nchw)

    def to_jax(self, path: str | Path) -> None:
        """Write an exported JAX function, which can be called without this library."""
        write_exported(expanded(path), self, self.about.image_shape)

    def to_run(self, folder: str | Path, experiment: Experiment | str) -> None:
        """Write a run of no epochs, which every command accepts: an experiment with this network, and its weights.

        Args:
          folder: the run's folder.
          experiment: says how to evaluate it; or the name of such a config. With a name, encoded images are cropped as
            the network was published for, if it was loaded by a published name.

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
        # Weights first, in a neighbouring folder: a run without weights would look like one that was stopped.
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
        """The experiment that says how to evaluate it, with some evaluation fields replaced."""
        experiment = self.origin.experiment
        known = [each.name for each in dataclasses.fields(experiment.evaluation)]
        for name in fields:
            check_choice("field", name, known)
        evaluation = dataclasses.replace(experiment.evaluation, **fields)
        if "eps" in fields or "norm" in fields:
            check_radius("eps", evaluation.eps, evaluation.norm.lower())
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
        """The class names of a data set that is known by name; () if they are not known."""
        dataset = "fashion_mnist" if self.about.dataset == "embedded" else self.about.dataset
        found = KNOWN[dataset].class_names if dataset in KNOWN else ()
        return found if len(found) == self.about.num_classes else ()

    def _blocks(self, size: int, experiment: Experiment) -> Blocks:
        return Blocks(self, size, jax.devices(), experiment.evaluation.precision)
