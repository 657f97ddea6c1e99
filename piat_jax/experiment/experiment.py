"""A resolved config: frozen, with methods that build every object of the experiment."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from piat_jax import models
from piat_jax.attacks import ATTACKS
from piat_jax.averaging import AVERAGES, PIAT, Average, RationalWeight
from piat_jax.core.bound import Bound, bind
from piat_jax.core.checks import InputError, check_count
from piat_jax.core.nested import leaves
from piat_jax.core.sharding import data_mesh
from piat_jax.core.types import Array, Attack, Model
from piat_jax.data.batching import share_out, steps_per_epoch
from piat_jax.data.records import Decoding
from piat_jax.experiment.chosen import CHOOSERS, completed, rest_fields
from piat_jax.experiment.fields import (
    REST,
    AttackFields,
    CheckpointFields,
    DatasetFields,
    EvaluationFields,
    Fields,
    LogFields,
    ModelFields,
    OptimizerFields,
    PIATFields,
    field,
    group,
)
from piat_jax.experiment.methods import Stack, average_kind, parse_method
from piat_jax.experiment.resources import ConfigResources
from piat_jax.experiment.reused import reused
from piat_jax.objectives import METHODS, WRAPPERS, AttackedObjective, Wrapper
from piat_jax.training import Recipe, build_optimizer, build_rate
from piat_jax.training.epoch import StepEnd
from piat_jax.training.layer_scales import layer_scales
from piat_jax.training.optimizer import optimizer_function
from piat_jax.training.schedules import SCHEDULES, Rate, schedule_fields

NAMED = ("wrappers", "further")
"""Fields of an experiment whose groups are at a config's top level, by their own names."""
AUGMENTATION = (
    "crop_padding", "padding_mode", "flip", "policy", "policy_operations", "policy_magnitude", "cutout", "erasing",
)  # fmt: skip
OF_ENCODED = ("resize", "resizing", "interpolation", "crop_scale", "workers", "on_bad_image", "test_list")
"""Fields that only encoded images of any size have."""


@group
class Experiment:
    """One experiment: the content of a config file and its overrides, without the file.

    Attributes are the config's fields; a wrapper's are in `wrappers`, a further average's in `further`. The methods
    build the objects that the fields describe; none of them reads data.
    """

    method: Stack
    seed: int = field("seed of all random draws: weights, batches, attacks", default=0)
    epochs: int = field("number of training epochs", default=120)
    batch_size: int = field(
        "training batch size; not stated, the value of all public codes. The last partial batch of an epoch is dropped",
        default=128,
    )
    microbatches: int = field(
        "gradient accumulation: number of equal parts of a batch that are processed in turn, to save memory. BatchNorm "
        "normalises each part separately and updates its running statistics with each",
        default=1,
    )
    fsdp: bool = field(
        "shard weights, momentum and anchor over the devices: less memory, more communication", default=False
    )
    nonfinite: str = field("at a step whose loss or gradient is not finite: stop or skip", default="stop")
    dataset: DatasetFields = field("the data set", default=DatasetFields)
    model: ModelFields = field("the network", default=ModelFields)
    optimizer: OptimizerFields = field("the optimizer", default=OptimizerFields)
    attack: AttackFields = field("the training attack", default=AttackFields)
    objective: Fields = field("fields of the method's objective", default=Fields)
    wrappers: Mapping[str, Fields] = field("fields of the method's wrappers, in groups by name", default=Fields)
    average: Fields = field("fields of the method's average", default=Fields)
    further: Mapping[str, Fields] = field("fields of the method's further averages, in groups by name", default=Fields)
    piat: PIATFields = field("parameter interpolation", default=PIATFields)
    evaluation: EvaluationFields = field("evaluation", default=EvaluationFields)
    checkpoint: CheckpointFields = field("checkpoints", default=CheckpointFields)
    log: LogFields = field("logging", default=LogFields)

    def __post_init__(self) -> None:
        for name in CHOOSERS:
            group = getattr(self, name)
            rest = rest_fields(name, vars(group))
            object.__setattr__(self, name, dataclasses.replace(group, rest=Fields({**rest, **group.rest})))

    def plain(self) -> dict[str, Any]:
        """The fields as nested dicts, in the form of a config."""
        found: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.name in NAMED:
                found |= {name: dict(fields) for name, fields in value.items()}
            elif each.name != "average" or value:
                found[each.name] = _plain(value)
        return found

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Experiment":
        """The inverse of `plain`; JSON's lists become tuples.

        Raises:
          InputError: a field or group is unknown, or there is no method.
        """
        if "method" not in plain:
            raise InputError("config has no method; begin with get_config(method) of piat_jax.configs.common")
        stack = parse_method(plain["method"])
        values: dict[str, Any] = {"method": stack}
        known = {each.name: each for each in dataclasses.fields(cls)}
        groups = {}
        for name, value in plain.items():
            if name in (*stack.wrappers, *stack.further):
                groups[name] = Fields(_tuples(value))
            elif name not in known or name in NAMED:
                raise InputError(f"config.{name} is not a field of an experiment with {stack}; remove it")
            elif name != "method":
                values[name] = _group(name, known[name].default_factory, value)
        for kind in NAMED:
            values[kind] = {name: groups.get(name, Fields()) for name in getattr(stack, kind)}
        return cls(**values)

    def with_fields(self, values: Mapping[str, Any]) -> "Experiment":
        """The experiment with some fields changed, by their paths, unchecked.

        >>> Experiment(method=parse_method("trades")).with_fields({"attack.eps": 0.5}).attack.eps
        0.5
        """
        plain = self.plain()
        for path, value in values.items():
            *groups, name = path.split(".")
            functools.reduce(lambda fields, group: fields[group], groups, plain)[name] = value
        return Experiment.from_plain(plain)

    # Builders ---------------------------------------------------------------------------------------------------------

    def build_model(self, num_classes: int, *, dtype: str = "") -> models.LinenModel:
        """The network for `num_classes` classes; a given `dtype` replaces the experiment's."""
        fields = {name: value for name, value in vars(self.model).items() if name not in ("name", "weights", "options")}
        fields |= dict(self.model.options) | ({"dtype": dtype} if dtype else {})
        with named("model", {"model.options": self.model.options}):
            return models.create(self.model.name, num_classes=num_classes, **fields)

    def build_attack(self) -> Bound:
        """The training attack, checked on a one-pixel image."""
        fields = self.attack
        bound = bind(ATTACKS[fields.name], eps=fields.eps, norm=fields.norm, **fields.rest)
        try_attack(bound)
        return bound

    def build_objective(
        self, net: Model, image_shape: Sequence[int] = (), *, attack: Attack | None = None, examples: int = 1
    ) -> AttackedObjective | Wrapper:
        """The method around a network and an attack.

        Args:
          net: the network.
          image_shape: `(H, W, C)`; without it no teacher's weights are loaded.
          attack: replaces the training attack.
          examples: number of training examples, including generated ones, for methods that store values per example.
        """
        training_attack = attack or self.build_attack()
        with named("objective"):
            built: AttackedObjective | Wrapper = METHODS[self.method.base](
                model=net, attack=training_attack, **self.objective
            )
        for name, fields in self.wrappers.items():
            try:
                built = WRAPPERS[name].from_fields(
                    built, fields, ConfigResources(self.model, name, net, image_shape, examples)
                )
            except InputError as error:
                of_field = str(error).partition("=")[0] in fields
                raise InputError(f"{name}{'.' if of_field else ': '}{error}") from error
        return built

    def build_piat(self) -> PIAT | None:
        """The interpolation hook; None if the method has none."""
        return self.check_piat() if self.method.piat else None

    def check_piat(self) -> PIAT:
        """The interpolation hook that the fields describe, even if the method does not use it."""
        fields = self.piat
        with named("piat"):
            return PIAT(
                weight=RationalWeight(fields.a, fields.b, fields.c, fields.d),
                first_epoch=fields.first_epoch,
                batch_stats=fields.batch_stats,
                momentum=fields.momentum,
            )

    def build_average(self) -> Average | None:
        """The average that is evaluated instead of the weights; None if the method has none."""
        name = self.method.average
        return self._average("average", name, self.average) if name else None

    def build_averages(self) -> list[Average]:
        """All averages: the one evaluated instead of the weights, and the further ones."""
        first = self.build_average()
        return ([first] if first else []) + [self.build_further(name) for name in self.further]

    def build_further(self, name: str) -> Average:
        """The further average with this name."""
        return dataclasses.replace(self._average(name, average_kind(name), self.further[name]), name=name)

    def _average(self, group: str, kind: str, fields: Mapping[str, Any]) -> Average:
        with named(group):
            return AVERAGES[kind](epochs=self.epochs, **fields)

    def build_rate(self, steps: int) -> Rate:
        """The schedule of the learning rate (and of a variable momentum) over steps, with `steps` steps per epoch."""
        fields = {name: value for name, value in self.optimizer.rest.items() if name in self._of_schedule}
        return build_rate(self.optimizer.schedule, fields, epochs=self.epochs, steps_per_epoch=steps)

    def build_optimizer(self, rate: Rate | optax.ScalarOrSchedule, scales: Any = None) -> optax.GradientTransformation:
        """The optimizer for a learning rate; `scales` are factors on the updates, as from `layer_scales`."""
        fields = self.optimizer
        return build_optimizer(
            fields.name,
            rate,
            {name: value for name, value in fields.rest.items() if name not in self._of_schedule},
            weight_decay=fields.weight_decay,
            weight_decay_on=fields.weight_decay_on,
            max_norm=fields.max_norm,
            scales=scales,
        )

    @property
    def _of_schedule(self) -> set[str]:
        return set(schedule_fields(self.optimizer.schedule))

    def build_recipe(
        self,
        num_train: int,
        *,
        net: Model | None = None,
        image_shape: Sequence[int] = (),
        num_extra: Sequence[int] = (),
    ) -> Recipe:
        """The recipe of an epoch: optimizer, batch size, augmentation, and averages after each step.

        Args:
          num_train: number of training examples.
          net: the network; needed, with its images' shape, only for layer-wise learning rates.
          image_shape: `(H, W, C)`.
          num_extra: number of generated examples in each file; matters only for several files.
        """
        steps = self.steps(num_train)
        scales = None
        if self.optimizer.layer_decay != 1 and net is not None:
            like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
            scales = layer_scales(net, like, tuple(image_shape), self.optimizer.layer_decay)
        return Recipe(
            optimizer=self._optimizer(steps, scales),
            step_end=self._step_end(),
            batch_size=self.batch_size,
            **{name: getattr(self.dataset, name) for name in AUGMENTATION},
            extra_per_batch=self.share_extra(num_extra),
            mesh=self.build_mesh(),
            split_state=self.fsdp,
            skip_nonfinite=self.nonfinite == "skip",
            microbatches=self.microbatches,
            epoch_steps=self.dataset.epoch_steps,
            **self._smoothing,
        )

    def _optimizer(self, steps: int, scales: Any) -> optax.GradientTransformation:
        def build() -> optax.GradientTransformation:
            return self.build_optimizer(self.build_rate(steps), scales)

        if scales is not None:
            return build()
        functions = SCHEDULES[self.optimizer.schedule], optimizer_function(self.optimizer.name)
        return reused(build, "optimizer", *functions, repr(_plain(self.optimizer)), self.epochs, steps)

    def _step_end(self) -> tuple[StepEnd, ...]:
        def build() -> tuple[StepEnd, ...]:
            return tuple(kept.after_step for kept in self.build_averages() if kept.every == "step")

        kinds = [self.method.average, *map(average_kind, self.further)]
        functions = tuple(AVERAGES[kind] for kind in kinds if kind)
        fields = [(name, sorted(each.items())) for name, each in (("", self.average), *self.further.items())]
        return reused(build, "averages", functions, repr(fields), self.epochs)

    def build_mesh(self) -> Mesh | None:
        """The mesh of devices that share each part of a batch; None for one device."""
        part = self.batch_size // self.microbatches
        try:
            return data_mesh(part)
        except InputError as error:
            if self.microbatches == 1:
                raise
            raise InputError(f"microbatches={self.microbatches} leaves parts of {part} examples: {error}") from error

    def build_decoding(self) -> Decoding | None:
        """The decoding of encoded images; None for images of one size."""
        fields = self.dataset
        if not fields.image_size:
            given = {name: getattr(fields, name) for name in OF_ENCODED}
            plain = {each.name: each.default for each in dataclasses.fields(DatasetFields)}
            if changed := [name for name, value in given.items() if value != plain[name]]:
                raise InputError(
                    f"dataset.{changed[0]}={given[changed[0]]!r} is for encoded images; give dataset.image_size, the "
                    "side of the crop in pixels, or leave it out"
                )
            return None
        with named("dataset"):
            check_count("workers", fields.workers, 0)
            return Decoding(
                size=fields.image_size,
                resize=fields.resize,
                resizing=fields.resizing,
                interpolation=fields.interpolation,
                scale=tuple(fields.crop_scale),  # type: ignore[arg-type]
                on_bad=fields.on_bad_image,
            )

    @property
    def needs_its_file(self) -> bool:
        """Whether the user's config file defines a part of the experiment, so that later commands need the file."""
        parts: list[Any] = [METHODS[self.method.base], models.MODELS[self.model.name][0]]
        parts += [WRAPPERS[name] for name in self.method.wrappers]
        parts += [AVERAGES[average_kind(name)] for name in filter(None, (self.method.average, *self.method.further))]
        return not all(part.__module__.startswith("piat_jax.") for part in parts)

    def steps(self, num_train: int) -> int:
        """The number of steps per epoch for `num_train` training examples."""
        return steps_per_epoch(num_train, self.batch_size, self.dataset.epoch_steps)

    @property
    def extra_files(self) -> tuple[str, ...]:
        """The files of generated examples."""
        extra = self.dataset.extra
        return ((extra,) if extra else ()) if isinstance(extra, str) else tuple(extra)

    @property
    def extra_per_batch(self) -> int:
        """The number of generated examples in a batch."""
        return round(self.dataset.extra_fraction * self.batch_size) if self.dataset.extra else 0

    def share_extra(self, sizes: Sequence[int]) -> int | tuple[int, ...]:
        """Each file's number of examples in a batch, from the files' sizes; for fewer than two files one number."""
        if len(sizes) < 2:
            return self.extra_per_batch
        return share_out(self.extra_per_batch, self.dataset.extra_weights or sizes)

    @property
    def _smoothing(self) -> dict[str, Any]:
        """A recipe's arguments for label smoothing of generated examples; empty without smoothing."""
        smoothing = self.dataset.extra_smoothing
        if not self.dataset.extra or not any(smoothing):
            return {}
        return {"extra_smoothing": smoothing, "smoothing_over": self.objective.get("smoothing_over", "others")}

    @property
    def monitor(self) -> str:
        """The split that is evaluated during training: "validation" if examples are held out for it, else "test"."""
        return "validation" if self.dataset.validation_examples else "test"


@contextlib.contextmanager
def named(group: str, others: Mapping[str, Collection[str]] = {}) -> Iterator[None]:
    """Prefix errors about `field=value` with the field's group; `others` are subgroups with their fields.

    >>> with named("piat"):
    ...     raise InputError("momentum='foo' is unknown")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: piat.momentum='foo' is unknown
    """
    try:
        yield
    except InputError as error:
        field = re.match(r"(\w+)=", str(error))
        if not field:
            raise
        inside = next((other for other, fields in others.items() if field[1] in fields), group)
        raise InputError(f"{inside}.{error}") from error


def try_attack(bound: Bound) -> None:
    """Trace an attack on one pixel to check its arguments; nothing is computed.

    The radius is checked elsewhere, under its name in the config.
    """
    bound = bind(bound, eps=0.5)
    image = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)

    def run(x: Array, y: Array) -> Array:
        return bound(lambda x: jnp.concatenate([x, -x], axis=-1).reshape(1, 2), x, y, key=jax.random.key(0))

    jax.eval_shape(run, image, label)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two nested dicts differ, as "name: old -> new"; a list equals a tuple.

    >>> differences({"a": {"b": 1}, "c": [2]}, {"a": {"b": 3}, "c": (2,)})
    ['a.b: 1 -> 3']
    """
    before, after = (leaves(_tuples(plain)) for plain in (old, new))
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, "absent") != after.get(name, "absent")
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Stack):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if not dataclasses.is_dataclass(value):
        return value
    found = {name: _plain(each) for name, each in vars(value).items() if name != REST}
    return found | dict(vars(value).get(REST, {}))


def _tuples(value: Any) -> Any:
    """Nested dicts with lists replaced by tuples."""
    if isinstance(value, Mapping):
        return {name: _tuples(each) for name, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _group(name: str, cls: Any, value: Any) -> Any:
    """The value of a field or group."""
    if cls is dataclasses.MISSING:
        return value
    values = _tuples(value)
    if cls is Fields:
        return Fields(values)
    known = {each.name: each for each in dataclasses.fields(cls) if each.name != REST}
    others: dict[str, Any] = {}
    if name in CHOOSERS:
        values = completed(name, values)
        rest = rest_fields(name, values)
        others = {REST: Fields({key: values.pop(key) for key in rest})}
    for unknown in values.keys() - known.keys():
        there = ", ".join([*known, *others.get(REST, ())])
        raise InputError(f"config.{name}.{unknown} is not a field of config.{name}; there are {there}")
    own = {key: Fields(each) if known[key].default_factory is Fields else each for key, each in values.items()}
    return cls(**own, **others)
