"""The programs of an experiment as a run compiles them, from shapes only, without data and weights."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from piat_jax.attacks.ensemble import Member
from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.sharding import AXIS, data_mesh, state_shardings
from piat_jax.core.types import TrainState
from piat_jax.data.dataset_info import ENCODED, KNOWN, EncodedInfo
from piat_jax.data.npz import read_examples
from piat_jax.evaluation import AutoAttack, accuracy, blocks, sending
from piat_jax.experiment import hooks
from piat_jax.experiment.data import load_data, load_extra
from piat_jax.experiment.evaluation import evaluation_attack
from piat_jax.experiment.experiment import Experiment
from piat_jax.models import LinenModel
from piat_jax.objectives import AttackedObjective, Wrapper
from piat_jax.programs.jit import ProgramJit
from piat_jax.programs.platform import compiling_for
from piat_jax.training import Examples, Recipe, init_state, train_steps
from piat_jax.training.streaming import WINDOW_BYTES, Window


class Sizes(NamedTuple):
    """The properties of the data on which programs depend."""

    image_shape: tuple[int, int, int]
    classes: int
    train: int  # number of training examples
    monitor: int  # number of examples evaluated during training
    test: int
    extra: tuple[int, ...] = ()  # numbers of generated examples, file by file


@dataclasses.dataclass(frozen=True)
class Program:
    """A program and the shapes for which it is compiled.

    Attributes:
      name: what it does: "train", "evaluate pgd20", "apgd-ce".
      jitted: the library's jitted function.
      arguments: shapes instead of arrays, with their devices.
      keywords: static arguments.
      platform: "gpu" or "tpu".
      devices: number of devices.
      examples: number of examples per step, or per call.
      precision: of matrix products; None = the default.
      beside: bytes on each device, during the program, of data that is not among its arguments.
      idle: the part of the training state that is not among the arguments of training: PIAT's anchor.
    """

    name: str
    jitted: ProgramJit
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    platform: str
    devices: int
    examples: int
    precision: str | None = None
    beside: float = 0.0
    idle: Any = None

    def lower(self) -> Any:
        """Lower the program for XLA, traced for its platform."""
        # JAX would reuse earlier traces for another platform.
        jax.clear_caches()
        jitted = jax.jit(self.jitted.program, **self.jitted.options)
        with compiling_for(self.platform), jax.default_matmul_precision(self.precision):
            return jitted.lower(*self.arguments, **self.keywords)


def sizes_of(experiment: Experiment) -> Sizes:
    """The sizes of an experiment's data: known for a published data set, else read from the files.

    Raises:
      InputError: more examples are requested than exist, or required files do not exist.
    """
    fields = experiment.dataset
    known = assumed(experiment) or KNOWN.get(fields.name)
    if known is None:
        data, train, monitor = load_data(experiment)
        extra = load_extra(experiment, train, data.num_classes)
        return Sizes(
            tuple(train.images.shape[1:]),
            data.num_classes,
            len(train.labels),
            len(monitor.labels),
            len(data.test.labels),
            tuple(len(split.labels) for split in extra),
        )
    for name, there in (("train_examples", known.train), ("test_examples", known.test)):
        if (asked := getattr(fields, name)) > there:
            raise InputError(
                f"dataset.{name}={asked} is more than the {there} of {fields.name!r}; give at most {there}"
            )
    train, test = fields.train_examples or known.train, fields.test_examples or known.test
    held = fields.validation_examples
    if held >= train:
        raise InputError(f"dataset.validation_examples={held} leaves nothing of the {train} training examples")
    extra = tuple(len(read_examples(Path(path)).labels) for path in experiment.extra_files)
    side = fields.image_size
    shape = (side, side, 3) if isinstance(known, EncodedInfo) else known.image_shape
    return Sizes(shape, known.classes, train - held, held or test, test, extra)


def assumed(experiment: Experiment) -> EncodedInfo | None:
    """The published encoded data set that a missing folder's name stands for; else None."""
    fields = experiment.dataset
    if not fields.image_size or (place := expanded(fields.name)).exists():
        return None
    return next((info for info in ENCODED if place.name.lower() in info.folders), None)


def training(experiment: Experiment, sizes: Sizes, devices: Sequence[Any], platform: str) -> Program:
    """The compiled loop over training steps, each on `batch_size` examples."""
    mesh = data_mesh(experiment.batch_size, devices)
    with compiling_for(platform):
        net = experiment.build_model(sizes.classes)
        objective = experiment.build_objective(net, sizes.image_shape, examples=sizes.train + sum(sizes.extra))
        recipe = experiment.build_recipe(
            sizes.train, net=net, image_shape=sizes.image_shape, num_extra=sizes.extra
        )._replace(mesh=mesh)
        whole = _state(experiment, objective, recipe, sizes)
    anchor, state = whole.anchor, dataclasses.replace(whole, anchor=None)  # as in `run_epoch`
    place = _Places(mesh, devices[0])
    split = mesh is not None and recipe.split_state
    idle = place.state(anchor, split=split)
    monitor = _split(sizes.monitor, sizes.image_shape)
    watched = () if sending.are_many(monitor[0]) else place.everywhere(monitor)
    arguments = (
        place.state(state, split=split),
        place.everywhere(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, objective))),
        _examples(experiment, sizes, place),
        place.everywhere(jax.eval_shape(lambda: jax.random.key(experiment.seed))),
        *(place.everywhere(jax.ShapeDtypeStruct((), jnp.int32)) for _ in range(3)),
    )
    return Program(
        name="train",
        jitted=train_steps,
        arguments=arguments,
        keywords={"recipe": recipe},
        platform=platform,
        devices=1 if mesh is None else mesh.size,
        examples=experiment.batch_size,
        beside=bytes_on_a_device((idle, watched)),
        idle=idle,
    )


def evaluation(
    experiment: Experiment,
    sizes: Sizes,
    devices: Sequence[Any],
    platform: str,
    attack: str,
    count: int,
    *,
    train: Program | None = None,
) -> Program:
    """The evaluation of one block, out of `count` images, under an attack other than AutoAttack.

    During training, the state and the data of `train` are on the device as well.
    """
    mesh = data_mesh(len(devices), devices)
    place = _Places(mesh, devices[0])
    shares = 1 if mesh is None else mesh.size
    block = -(-min(experiment.evaluation.batch_size, count) // shares) * shares
    with compiling_for(platform):
        logits_fn = place.everywhere(_network(experiment, sizes))
        bound = evaluation_attack(experiment, attack)
    there = _split(count, sizes.image_shape)
    if sent := sending.are_many(there[0]):
        there = _split(block, sizes.image_shape)
    arguments = (
        logits_fn,
        *(place.rows(there) if sent else place.everywhere(there)),
        place.everywhere(jax.ShapeDtypeStruct((block,), jnp.int32)),
        bound,  # numbers, not on a device yet
        place.everywhere(jax.eval_shape(lambda: jax.random.key(0))),
    )
    return Program(
        name=f"evaluate {attack}",
        jitted=accuracy._correct_block,
        arguments=arguments,
        keywords={"mesh": mesh, **({"sent": True} if sent else {})},
        platform=platform,
        devices=shares,
        examples=block,
        precision=_precision(experiment),
        beside=0.0 if train is None else bytes_on_a_device((train.arguments, train.idle)),
    )


def autoattack(
    experiment: Experiment, sizes: Sizes, devices: Sequence[Any], platform: str, member: Member, settings: AutoAttack
) -> Program:
    """One block of one of AutoAttack's attacks: one run of a full block of rows."""
    mesh = Mesh(np.array(devices), (blocks.ROWS,))
    unit = 8 * len(devices)
    rows = -(-min(settings.block_size, sizes.test) // unit) * unit
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(blocks.ROWS))

    def shape(dtype: Any, *more: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *more), dtype, sharding=split)

    with compiling_for(platform):
        logits_fn = _network(experiment, sizes)
    targets = shape(jnp.int32) if member.targets else None
    given = blocks.Rows(
        shape(jnp.float32, *sizes.image_shape), shape(jnp.int32), shape(jnp.uint32), shape(jnp.bool_), targets
    )
    # The attack's numbers, the key and eps are not on a device yet.
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    eps = jax.ShapeDtypeStruct((), jnp.float32)
    logits_fn = jax.tree.map(lambda leaf: _placed(leaf, whole), logits_fn)
    return Program(
        name=member.name,
        jitted=blocks._attack,
        arguments=(member.attack, logits_fn, given, key, eps),
        keywords={"norm": settings.norm, "mesh": mesh},
        platform=platform,
        devices=len(devices),
        examples=rows,
        precision=_precision(experiment),
    )


def count(tree: Any) -> int:
    """The number of elements in arrays of these shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def bytes_on_a_device(tree: Any) -> float:
    """Bytes of arrays with these shapes and shardings on one device."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        leaf = jax.eval_shape(jax.random.key_data, leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def _state(experiment: Experiment, objective: AttackedObjective | Wrapper, recipe: Recipe, sizes: Sizes) -> TrainState:
    """The state before the first step, as shapes."""

    def begin() -> TrainState:
        images = jnp.zeros((experiment.batch_size * objective.views, *sizes.image_shape))
        state = init_state(objective, recipe.optimizer, images, key=jax.random.key(experiment.seed))
        return hooks.start(experiment, state)

    return jax.eval_shape(begin)


def _network(experiment: Experiment, sizes: Sizes) -> Any:
    """The network's logits function for evaluation, with shapes instead of weights."""
    net: LinenModel = experiment.build_model(sizes.classes, dtype="float32")
    images = jax.ShapeDtypeStruct((1, *sizes.image_shape), jnp.float32)
    return make_logits_fn(net, jax.eval_shape(net.init, jax.random.key(0), images))


def _examples(experiment: Experiment, sizes: Sizes, place: "_Places") -> Examples | Window:
    """The training data, on the device or a window of it."""
    if not (experiment.dataset.stream or experiment.dataset.image_size):
        own = _split(sizes.train, sizes.image_shape)
        sources = tuple(_split(count, sizes.image_shape) for count in sizes.extra)
        extra = sources[0] if len(sources) == 1 else sources or None
        return place.everywhere(Examples(*own, extra=extra))
    batch = experiment.batch_size
    steps = experiment.steps(sizes.train)
    length = max(1, min(steps, WINDOW_BYTES // (batch * math.prod(sizes.image_shape))))
    images, labels = (
        jax.ShapeDtypeStruct((length, *part.shape), part.dtype) for part in _split(batch, sizes.image_shape)
    )
    split = place.sharding(PartitionSpec(None, AXIS))
    images, labels, indices = (_placed(part, split) for part in (images, labels, labels))
    first = place.everywhere(jax.ShapeDtypeStruct((), jnp.int32))
    return Window(images, labels, indices, first, sizes.train, sizes.extra)


def _split(count: int, image_shape: Sequence[int]) -> tuple[Any, Any]:
    """Images and labels."""
    return jax.ShapeDtypeStruct((count, *image_shape), jnp.uint8), jax.ShapeDtypeStruct((count,), jnp.int32)


def _precision(experiment: Experiment) -> str | None:
    precision = experiment.evaluation.precision
    return None if precision == "default" else precision


@dataclasses.dataclass(frozen=True)
class _Places:
    """The placement of arguments: on one device, or on all devices of a mesh."""

    mesh: Mesh | None
    device: Any

    def sharding(self, spec: PartitionSpec) -> Any:
        return SingleDeviceSharding(self.device) if self.mesh is None else NamedSharding(self.mesh, spec)

    def everywhere(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: _placed(leaf, self.sharding(PartitionSpec())), tree)

    def rows(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: _placed(leaf, self.sharding(PartitionSpec(AXIS))), tree)

    def state(self, tree: Any, *, split: bool) -> Any:
        if self.mesh is None:
            return self.everywhere(tree)
        return jax.tree.map(_placed, tree, state_shardings(tree, self.mesh, split=split))


def _placed(leaf: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type)
