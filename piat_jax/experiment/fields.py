"""The fields that every experiment has, one frozen group each: default, unit and meaning.

The defaults are the PIAT paper's protocol for ResNet-18 on CIFAR-10. Where the paper is silent they are those of its
lineage (SEAT, Generalist) and marked "not stated". A method's own fields are those of its class (objectives/).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, dataclass_transform

MEANING, REST = "meaning", "rest"


def field(meaning: str, *, default: Any) -> Any:
    """A field with its default and what it means; the default of a group is the group with its own defaults."""
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata={MEANING: meaning})
    return dataclasses.field(default=default, metadata={MEANING: meaning})


class OpenGroup:
    """A group with fields of its own and those of what it chooses, which are attributes alike."""

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
    """Fields that are known by name only: of a method, a wrapper, an average, or the options of a model.

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
    """The fields that a group has beside the declared ones: those of what its other fields choose (`chosen.py`)."""
    return dataclasses.field(default_factory=Fields, metadata={MEANING: meaning, REST: True})


@group
class DatasetFields:
    """What is trained and tested on, and how training images are augmented."""

    name: str = field("a name (piat-data lists them), tfds:NAME, or the path of a folder or file", default="cifar10")
    data_dir: str = field("where a named data set's files are; empty looks in the usual places", default="")
    train_examples: int = field("the first n; 0 = all", default=0)
    test_examples: int = field("the first n; 0 = all", default=0)
    validation_examples: int = field(
        "held out of training to choose the best epoch; 0 chooses on the test set. fawa decides on them, as in CFA",
        default=0,
    )
    crop_padding: int = field("pixels; 0 = no random crop", default=4)
    padding_mode: str = field("zeros, reflect", default="zeros")
    flip: bool = field("mirror half of the images; never for digits", default=True)
    policy: str = field("autoaugment: its CIFAR policy; autoaugment_imagenet; randaugment; empty = none", default="")
    policy_operations: int = field("of randaugment: operations on each image", default=2)
    policy_magnitude: int = field("of randaugment: from 0 to 30", default=9)
    cutout: int = field("pixels a side of a black square; 0 = none", default=0)
    erasing: float = field("probability that a rectangle of an image becomes noise, in [0, 1]", default=0.0)
    extra: str | tuple[str, ...] = field(
        "an .npz file with generated examples (image, label), mixed into every batch, or several, parted by commas; "
        "empty = none",
        default="",
    )
    extra_fraction: float = field("of each batch; an epoch stays as long as it is without them", default=0.7)
    extra_weights: tuple[float, ...] = field(
        "of several files in that part of a batch, such as 2,1; () = in proportion to their sizes", default=()
    )
    extra_smoothing: tuple[float, ...] = field(
        "share of the label of generated examples that is spread over the classes of objective.smoothing_over, or one "
        "for each file; the attack is told too",
        default=(0.0,),
    )
    epoch_steps: int = field(
        "steps of an epoch, by which epochs are counted everywhere; 0 = as many as the data has whole batches",
        default=0,
    )
    image_size: int = field(
        "pixels a side of encoded images of any size, which stay in their files: name is then a folder or a pattern of "
        "them; 0 = images of one size",
        default=0,
    )
    resize: int = field(
        "of such images to evaluate on: pixels of the short side before the crop in the middle; 0 = 256 for a crop of "
        "224, in this proportion",
        default=0,
    )
    resizing: str = field(
        "what resize is of: short (side), both (sides, whatever their ratio); none resizes nothing", default="short"
    )
    interpolation: str = field("of such images: bilinear, bicubic", default="bilinear")
    crop_scale: tuple[float, ...] = field(
        "least and largest share of such an image's area that is trained on", default=(0.08, 1.0)
    )
    workers: int = field("processes that decode such images; 0 = threads of this one", default=0)
    on_bad_image: str = field(
        "what such an image does that cannot be decoded: stop, or skip: the next one stands in, and it is counted",
        default="stop",
    )
    test_list: str = field(
        "a text file that names the images to evaluate on, CLASS/FILE in each line, as RobustBench's of ImageNet; "
        "test_examples are the first n of it; empty = all",
        default="",
    )
    stream: bool = field("from the host in windows of steps: for data larger than the device's memory", default=False)


@group
class ModelFields:
    """The network."""

    name: str = field("a name of piat_jax.models.MODELS, or a published one: timm:convnext_tiny", default="resnet18")
    dtype: str = field("of activations: float32, bfloat16", default="float32")
    mean: tuple[float, ...] = field(
        'input normalisation per channel, inside the model; () = none, the paper\'s "normalized into [0, 1]"',
        default=(),
    )
    std: tuple[float, ...] = field("the same for the standard deviation", default=())
    bn_momentum: float = field(
        "share of a batch in BatchNorm's running statistics at each update: PyTorch's 0.1; 0.01 in DeepMind's codes",
        default=0.1,
    )
    bn_groups: int = field(
        "groups of the batch with BatchNorm statistics of their own: as many as the GPUs of a DataParallel run",
        default=1,
    )
    weights: str = field(
        "to start from: a file, a hub's folder or a run, as piat-convert takes them; empty = none", default=""
    )
    options: Fields = field("of this model only: width, stage_sizes, ...", default=Fields)


@group
class OptimizerFields(OpenGroup):
    """The optimizer and its learning rate."""

    name: str = field("any of optax and optax.contrib that needs gradients alone: sgd, adamw, lamb, ...", default="sgd")
    schedule: str = field(
        "of the learning rate: piecewise_linear, step, cosine, linear, one_cycle, triangular, constant",
        default="piecewise_linear",
    )
    weight_decay: float = field(
        "coupled (added to the gradient), or decoupled where the optimizer is (adamw, lamb, lion)", default=3.5e-3
    )
    weight_decay_on: str = field("all parameters, or matrices: none of biases and norms", default="all")
    max_norm: float = field("the gradient is scaled to this L2 norm where it is longer; 0 = never", default=0.0)
    layer_decay: float = field(
        "factor on the rate of each part of the network per part above it, for fine-tuning; 1 = one rate", default=1.0
    )
    rest: Fields = rest("arguments of the optimizer and of the schedule")


@group
class AttackFields(OpenGroup):
    """The training attack."""

    name: str = field("of piat_jax.attacks.ATTACKS: pgd, fgsm, apgd, ...", default="pgd")
    eps: float = field("radius, pixels in [0, 1]; write 8/255 on the command line", default=8 / 255)
    norm: str = field("linf, l2, l1, as far as the attack has them", default="linf")
    rest: Fields = rest("options of the attack")


@group
class PIATFields:
    """Parameter interpolation; used where the method says piat. lambda_n = (a n + b) / (c n + d), Eq. 10."""

    a: float = field("of lambda_n = (a n + b) / (c n + d)", default=1.0)
    b: float = field("a = c = 0 gives the constant b / d", default=1.0)
    c: float = field("of lambda_n", default=1.0)
    d: float = field("of lambda_n", default=10.0)
    first_epoch: int = field("n of the first epoch: 1 as in Algorithm 1, 0 as in the lineage's code", default=1)
    batch_stats: str = field("BatchNorm statistics: interpolate, keep, recompute; not stated", default="interpolate")
    momentum: str = field("the optimizer's, across the write-back: keep, reset; not stated", default="keep")


@group
class EvaluationFields:
    """What is evaluated during training and afterwards."""

    every_epochs: int = field("and always after the last", default=1)
    attacks: tuple[str, ...] = field(
        "during training; a name and its steps: pgd20, cw20, mi_fgsm10, fgsm", default=("clean", "pgd20")
    )
    select: str = field("the best checkpoint is that with the highest accuracy under this", default="pgd20")
    final_attacks: tuple[str, ...] = field("what piat-evaluate runs by default", default=("clean", "pgd20", "cw20"))
    eps: float = field("radius, pixels in [0, 1]; follows attack.eps unless given", default=8 / 255)
    step_size: float = field("pixels in [0, 1]; follows attack.step_size unless given", default=2 / 255)
    norm: str = field("linf, l2; follows attack.norm unless given", default="linf")
    restarts: int = field("of pgd and cw", default=1)
    batch_size: int = field("examples per compiled call", default=500)
    precision: str = field("of matrix products: highest, default (may be TF32 on a GPU)", default="highest")
    attack_precision: str = field(
        "of AutoAttack's attacks alone: same, tensorfloat32, bfloat16 (activations too). precision judges, and what it "
        "refuses is attacked again",
        default="same",
    )
    union_eps: tuple[float, ...] = field(
        "radii of aa-union and its parts aa-linf, aa-l2 and aa-l1, pixels in [0, 1]; as in E-AT on CIFAR-10",
        default=(8 / 255, 0.5, 12.0),
    )


@group
class CheckpointFields:
    """What is saved."""

    every_epochs: int = field('of "last", which is also saved when it is the best so far', default=1)


@group
class LogFields:
    """What is logged."""

    steps_per_chunk: int = field(
        "training steps between two looks at the loss; fewer if they take over 2 seconds", default=50
    )
    tensorboard: bool = field("write TensorBoard events where tensorboardX is installed", default=True)
    to: tuple[str, ...] = field(
        "further loggers, of piat_jax.loggers.LOGGERS: wandb, mlflow, tensorboard or one of your own", default=()
    )
    images: int = field(
        "first test images in the picture (clean, under evaluation.select's attack, difference) that loggers get at "
        "each evaluation; 0 = none",
        default=8,
    )
