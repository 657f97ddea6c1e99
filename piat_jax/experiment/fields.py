"""The fields of every experiment, as frozen groups: each field has a default, a unit and a meaning.

The defaults are the PIAT paper's protocol for ResNet-18 on CIFAR-10. Values that the paper does not state come from
the code it builds on (SEAT, Generalist) and are marked "not stated". A method's fields are those of its class
(objectives/).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, dataclass_transform

MEANING, REST = "meaning", "rest"


def field(meaning: str, *, default: Any) -> Any:
    """A field with its default and its meaning; if `default` is a group's class, the default is that group's."""
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata={MEANING: meaning})
    return dataclasses.field(default=default, metadata={MEANING: meaning})


class OpenGroup:
    """A group with declared fields and those that its choices bring; both are attributes."""

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__.get(REST, {})
        if name not in found:
            raise AttributeError(name)
        return found[name]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field, dataclasses.field))
def group(cls: type) -> type:
    """Declare a group of fields."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


class Fields(Mapping[str, Any]):
    """Undeclared fields, accessible by name: of a method, a wrapper or an average, or the options of a model.

    >>> Fields({"beta": 6.0}).beta, dict(Fields({"beta": 6.0}))
    (6.0, {'beta': 6.0})
    """

    def __init__(self, values: Mapping[str, Any] = {}):
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Fields({self._values})"


def rest(meaning: str) -> Any:
    """The fields that a group has in addition to the declared ones, depending on its choices (`chosen.py`)."""
    return dataclasses.field(default_factory=Fields, metadata={MEANING: meaning, REST: True})


@group
class DatasetFields:
    """The data to train and test on, and the augmentation of training images."""

    name: str = field("a name (piat-data lists them), tfds:NAME, or the path of a folder or file", default="cifar10")
    data_dir: str = field("folder with a named data set's files; empty = search the usual places", default="")
    train_examples: int = field("use the first n training examples; 0 = all", default=0)
    test_examples: int = field("use the first n test examples; 0 = all", default=0)
    validation_examples: int = field(
        "number of training examples held out to choose the best epoch (and for fawa, as in CFA); 0 = choose on the "
        "test set",
        default=0,
    )
    crop_padding: int = field("pixels of padding before the random crop; 0 = no random crop", default=4)
    padding_mode: str = field("zeros or reflect", default="zeros")
    flip: bool = field("mirror half of the images; set it to False for digits", default=True)
    policy: str = field("autoaugment (its CIFAR policy), autoaugment_imagenet or randaugment; empty = none", default="")
    policy_operations: int = field("for randaugment: number of operations per image", default=2)
    policy_magnitude: int = field("for randaugment: strength, from 0 to 30", default=9)
    cutout: int = field("side of a black square, in pixels; 0 = none", default=0)
    erasing: float = field("probability that a rectangle of an image is replaced by noise, in [0, 1]", default=0.0)
    extra: str | tuple[str, ...] = field(
        "an .npz file with generated examples (image, label) that are mixed into every batch, or several files, "
        "separated by commas; empty = none",
        default="",
    )
    extra_fraction: float = field(
        "fraction of each batch that is generated; the number of steps per epoch does not change", default=0.7
    )
    extra_weights: tuple[float, ...] = field(
        "shares of several files among a batch's generated examples, such as 2,1; () = proportional to their sizes",
        default=(),
    )
    extra_smoothing: tuple[float, ...] = field(
        "label smoothing of generated examples, over the classes of objective.smoothing_over, in loss and attack; "
        "one share, or one for each file",
        default=(0.0,),
    )
    epoch_steps: int = field(
        "steps per epoch, which is the unit of all epoch numbers; 0 = the number of whole batches in the data",
        default=0,
    )
    image_size: int = field(
        "crop side in pixels for encoded images of any size; name is then a folder or a pattern of files, which stay "
        "on disk; 0 = images of one size",
        default=0,
    )
    resize: int = field(
        "for evaluation on encoded images: pixels of the short side before the center crop; 0 = 256 for a crop of "
        "224, and in proportion",
        default=0,
    )
    resizing: str = field(
        "how resize applies: short (the short side), both (both sides, changing the aspect ratio), none (no resizing)",
        default="short",
    )
    interpolation: str = field("for encoded images: bilinear or bicubic", default="bilinear")
    crop_scale: tuple[float, ...] = field(
        "for training on encoded images: minimum and maximum area of the random crop, as a share of the image's",
        default=(0.08, 1.0),
    )
    workers: int = field("processes that decode encoded images; 0 = threads of the training process", default=0)
    on_bad_image: str = field(
        "if an encoded image cannot be decoded: stop, or skip (the next image replaces it, and it is counted)",
        default="stop",
    )
    test_list: str = field(
        "a text file with the images to evaluate on, one CLASS/FILE per line, such as RobustBench's list for ImageNet; "
        "test_examples takes its first n; empty = all images",
        default="",
    )
    stream: bool = field(
        "keep training images on the host and send them in windows of steps, for data larger than the device's memory",
        default=False,
    )


@group
class ModelFields:
    """The network."""

    name: str = field(
        "a name from piat_jax.models.MODELS, or a published one such as timm:convnext_tiny", default="resnet18"
    )
    dtype: str = field("data type of activations: float32 or bfloat16", default="float32")
    mean: tuple[float, ...] = field(
        "input normalisation inside the model: mean per channel, for pixels in [0, 1]; () = none, the paper's "
        '"normalized into [0, 1]"',
        default=(),
    )
    std: tuple[float, ...] = field("input normalisation: standard deviation per channel", default=())
    bn_momentum: float = field(
        "weight of the current batch in BatchNorm's running statistics: 0.1 in PyTorch, 0.01 in DeepMind's codes",
        default=0.1,
    )
    bn_groups: int = field(
        "number of groups of a batch that BatchNorm normalises separately, such as the GPUs of a DataParallel run",
        default=1,
    )
    weights: str = field(
        "pretrained weights to start from: a file, a folder from the hub or a run, as for piat-convert; empty = none",
        default="",
    )
    options: Fields = field("options of the chosen model: width, stage_sizes, ...", default=Fields)


@group
class OptimizerFields(OpenGroup):
    """The optimizer and its learning-rate schedule."""

    name: str = field(
        "any optimizer of optax or optax.contrib that needs only gradients: sgd, adamw, lamb, ...", default="sgd"
    )
    schedule: str = field(
        "learning-rate schedule: piecewise_linear, step, cosine, linear, one_cycle, triangular or constant",
        default="piecewise_linear",
    )
    weight_decay: float = field(
        "coupled (added to the gradient), or decoupled if the optimizer's is (adamw, lamb, lion)", default=3.5e-3
    )
    weight_decay_on: str = field("all (parameters), or matrices (no decay of biases and norms)", default="all")
    max_norm: float = field("maximum L2 norm of the gradient, for gradient clipping; 0 = no clipping", default=0.0)
    layer_decay: float = field(
        "layer-wise learning-rate decay for fine-tuning: factor per part of the network, from the last part to the "
        "first; 1 = one rate",
        default=1.0,
    )
    rest: Fields = rest("arguments of the optimizer and of the schedule")


@group
class AttackFields(OpenGroup):
    """The training attack."""

    name: str = field("a name from piat_jax.attacks.ATTACKS: pgd, fgsm, apgd, ...", default="pgd")
    eps: float = field("radius, for pixels in [0, 1]; write 8/255 on the command line", default=8 / 255)
    norm: str = field("linf, l2 or l1, if the attack supports it", default="linf")
    rest: Fields = rest("options of the attack")


@group
class PIATFields:
    """Parameter interpolation, if the method contains piat: lambda_n = (a n + b) / (c n + d), Eq. 10."""

    a: float = field("in lambda_n = (a n + b) / (c n + d)", default=1.0)
    b: float = field("in lambda_n; a = c = 0 gives the constant b / d", default=1.0)
    c: float = field("in lambda_n", default=1.0)
    d: float = field("in lambda_n", default=10.0)
    first_epoch: int = field("n in the first epoch: 1 as in Algorithm 1, 0 as in the code it builds on", default=1)
    batch_stats: str = field(
        "BatchNorm's running statistics: interpolate, keep or recompute; not stated", default="interpolate"
    )
    momentum: str = field("the optimizer's momentum after an interpolation: keep or reset; not stated", default="keep")


@group
class EvaluationFields:
    """Evaluation during training and afterwards."""

    every_epochs: int = field("evaluate after every n-th epoch, and always after the last", default=1)
    attacks: tuple[str, ...] = field(
        "attacks during training, each a name and its steps: clean, pgd20, cw20, mi_fgsm10, fgsm",
        default=("clean", "pgd20"),
    )
    select: str = field("the attack that selects the best checkpoint, by the highest accuracy", default="pgd20")
    final_attacks: tuple[str, ...] = field("attacks of piat-evaluate by default", default=("clean", "pgd20", "cw20"))
    eps: float = field("radius, for pixels in [0, 1]; follows attack.eps unless given", default=8 / 255)
    step_size: float = field("for pixels in [0, 1]; follows attack.step_size unless given", default=2 / 255)
    norm: str = field("linf or l2; follows attack.norm unless given", default="linf")
    restarts: int = field("random restarts of pgd and cw", default=1)
    batch_size: int = field("examples per compiled call", default=500)
    precision: str = field("of matrix products: highest, or default (may be TF32 on a GPU)", default="highest")
    attack_precision: str = field(
        "for AutoAttack's attacks only: same, tensorfloat32 or bfloat16 (activations too). Successes are checked at "
        "precision, and runs that fail this check are repeated at it",
        default="same",
    )
    union_eps: tuple[float, ...] = field(
        "radii of aa-union and its parts aa-linf, aa-l2 and aa-l1, for pixels in [0, 1]; as in E-AT on CIFAR-10",
        default=(8 / 255, 0.5, 12.0),
    )


@group
class CheckpointFields:
    """Saving of checkpoints."""

    every_epochs: int = field('save "last" every n epochs, and whenever it is the best so far', default=1)


@group
class LogFields:
    """Logging."""

    steps_per_chunk: int = field(
        "training steps between two reads of the loss; fewer if they take more than 2 seconds", default=50
    )
    tensorboard: bool = field("write TensorBoard events if tensorboardX is installed", default=True)
    to: tuple[str, ...] = field(
        "further loggers from piat_jax.loggers.LOGGERS: wandb, mlflow, tensorboard or your own", default=()
    )
    images: int = field(
        "first n test images for the picture that loggers receive at each evaluation (clean, under evaluation.select's "
        "attack, difference); 0 = no picture",
        default=8,
    )
