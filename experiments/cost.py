"""The cost of each method: network passes, counted in the compiled step, and images per second, measured.

    python -m experiments.cost --config=embedded --methods=trades,awp --repeats=5

Counting: the step is traced with a network that is one matrix product, and the products in the trace are counted by
their shapes: forwards, gradients with respect to images (an attack's) and with respect to weights. Loops count as often
as they run; of a branch that some steps take and others do not, both ends are shown. One pass is one batch.

Measuring: epochs of all methods in turn, several times, as a ratio to PGD-AT of the same round; the median is printed.
"""

import dataclasses
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from experiments import markdown
from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError
from piat_jax.core.forward import forward_flop
from piat_jax.core.types import Array, Batch, Model, Objective, TrainState, Variables
from piat_jax.data import KNOWN, load
from piat_jax.experiment import Experiment, config, hooks
from piat_jax.experiment.data import load_data
from piat_jax.experiment.provenance import describe_run
from piat_jax.experiment.sweep import teachers
from piat_jax.programs.jaxprs import inner_jaxprs
from piat_jax.training import Examples, init_state, run_epoch, train_step

# Sizes no two of which are equal or multiples, so that a product's shapes say what it is.
BATCH, FEATURES, CLASSES = 64, (1, 7, 1), 3
METHODS = (
    "standard", "pgd_at", "alp", "trades", "mart", "nmse", "mail", "trades+mail", "gairat", "fat", "cfa", "trades+cfa",
    "rat", "consistency", "trades+consistency", "awp", "trades+awp", "rpat", "trades+rpat", "mart+rpat",
    "consistency+rpat", "rebat", "rpatpp", "kd+swa", "ema", "ecas", "trades+ecas", "awp+ecas", "las", "trades+las",
    "free", "grad_align", "score", "ikl", "stat", "te", "ewat", "sovr", "mma", "adr", "cure", "hat", "lbgat", "dafa",
    "uiat", "mlcat", "generalist", "multi_norm",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OneProduct:
    """A network that is one matrix product, with a statistic of what comes out, as BatchNorm has."""

    outputs: int = CLASSES

    def init(self, key: Array, images: Array) -> Variables:
        """Nothing random is needed."""
        kernel = jnp.ones((images[0].size, self.outputs))
        return Variables({"linear": {"dense": {"kernel": kernel}}}, {"mean": jnp.zeros(self.outputs)})

    def apply(
        self, params: Any, model_state: Any, images: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Array, Any]:
        """Images times the kernel, centred."""
        z = images.reshape(images.shape[0], -1) @ params["linear"]["dense"]["kernel"]
        mean = jnp.mean(z, axis=0) if train else model_state["mean"]
        return z - mean[None], {"mean": 0.9 * model_state["mean"] + 0.1 * mean} if train else model_state


def make_objective(experiment: Experiment, net: Model, image_shape: Sequence[int]) -> Objective:
    """The method; where it needs teachers, random ones, which cost the same."""
    taught_by = teachers(str(experiment.method))
    if not taught_by:
        return experiment.build_objective(net, image_shape)
    with tempfile.TemporaryDirectory() as folder:
        variables = net.init(jax.random.key(0), jnp.zeros((1, *image_shape)))
        state = TrainState(step=0, epoch=0, opt_state=(), objective_state=(), **variables._asdict())  # type: ignore[arg-type]
        Checkpoints.of_run(Path(folder)).save("best", state, {"epoch": 0})
        return experiment.with_fields(dict.fromkeys(taught_by, folder)).build_objective(net, image_shape)


def count_passes(experiment: Experiment) -> dict[str, tuple[float, float]]:
    """Forwards, image gradients and weight gradients of one step, in batches: the fewest and the most of any step."""
    # These name parts of a real network; they do not change a count.
    if "rat" in experiment.wrappers:
        experiment = experiment.with_fields({"rat.head": ("linear", "dense", "kernel")})
    if "ard_prm" in experiment.wrappers:
        experiment = experiment.with_fields({"ard_prm.ard": False, "ard_prm.patch_size": 1})
    objective = make_objective(experiment, OneProduct(), FEATURES)
    recipe = experiment.build_recipe(experiment.batch_size)
    size = BATCH * objective.views
    images = jnp.zeros((size, *FEATURES))

    def step(key: Array) -> Any:
        state = hooks.start(experiment, init_state(objective, recipe.optimizer, images, key=key))
        batch = Batch(jnp.full((size, *FEATURES), 0.5), jnp.arange(size) % CLASSES, jnp.arange(size))
        return train_step(objective, recipe.optimizer, state, batch, key=key, epochs=10)

    low, high = _count(jax.make_jaxpr(step)(jax.random.key(0)).jaxpr)
    return {kind: (low[kind] / BATCH, high[kind] / BATCH) for kind in ("forward", "images", "weights")}


AUTOATTACK_PASSES = 10_000
"""Forwards of the standard version for an image that stays robust, a gradient counted as one more."""


def training_flop(experiment: Experiment) -> float:
    """Floating-point operations of an entire training run, without evaluation.

    A pass forward, one back to the images and one back to the weights count the same. If steps differ, the mean of
    the fewest and the most passes is taken. The data set need not exist.

    Raises:
      InputError: the size of the data set is not known without reading it.
    """
    size = _size_of(experiment)
    examples = (experiment.dataset.train_examples or size.train) - experiment.dataset.validation_examples
    passes = sum(sum(pair) / 2 for pair in count_passes(experiment).values())
    steps = experiment.dataset.epoch_steps or examples // experiment.batch_size
    images = experiment.epochs * steps * experiment.batch_size
    return passes * images * forward_flop(experiment.build_model(size.classes), size.image_shape)


def autoattack_flop(experiment: Experiment, images: int = 0) -> float:
    """Floating-point operations of AutoAttack on one checkpoint if every image stays robust.

    Args:
      experiment: of the run.
      images: number of test images; 0 = all.

    Raises:
      InputError: as `training_flop`.
    """
    size = _size_of(experiment)
    count = images or experiment.dataset.test_examples or size.test
    return AUTOATTACK_PASSES * count * forward_flop(experiment.build_model(size.classes), size.image_shape)


class Size(NamedTuple):
    """A data set's size."""

    image_shape: tuple[int, ...]
    classes: int
    train: int
    test: int


def _size_of(experiment: Experiment) -> Size:
    name = experiment.dataset.name
    if name == "embedded":
        data = load(name)
        return Size(data.train.images.shape[1:], data.num_classes, len(data.train.labels), len(data.test.labels))
    if name in KNOWN:
        known = KNOWN[name]
        return Size(known.image_shape, known.classes, known.train, known.test)
    raise InputError(f"dataset.name={name!r} has no size known in advance; choose one of {', '.join(KNOWN)}")


def _count(jaxpr: Any) -> tuple[Counter[str], Counter[str]]:
    """Examples that pass through each kind of product; at least and at most."""
    low: Counter[str] = Counter()
    high: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            kind, examples = _classify(equation)
            if kind:
                low[kind] += examples
                high[kind] += examples
            continue
        if equation.primitive.name == "cond":
            counts = [_count(branch.jaxpr) for branch in equation.params["branches"]]
            for kind in ("forward", "images", "weights"):
                low[kind] += min(count[0][kind] for count in counts)
                high[kind] += max(count[1][kind] for count in counts)
            continue
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in inner_jaxprs(equation):
            least, most = _count(inner)
            for kind in most:
                low[kind] += times * least[kind]
                high[kind] += times * most[kind]
    return low, high


def _classify(equation: Any) -> tuple[str, int]:
    """The purpose of a matrix product, and its number of examples."""
    shapes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
    inside = math.prod(FEATURES)
    examples = max((axis for shape in shapes for axis in shape if axis % BATCH == 0), default=0)
    if not examples or {inside, CLASSES} not in map(set, shapes):
        return "", 0
    out = shapes[2]
    if set(out) == {examples, inside}:
        return "images", examples
    return ("forward", examples) if examples in out else ("weights", examples)


def measure(methods: dict[str, Experiment], repeats: int) -> dict[str, list[float]]:
    """Images per second of each method's epochs, all methods in turn, `repeats` rounds; compilation is not counted."""
    runs = {}
    for name, experiment in methods.items():
        data, train, _ = load_data(experiment)
        objective = make_objective(experiment, experiment.build_model(data.num_classes), train.images.shape[1:])
        examples = Examples(jnp.asarray(train.images), jnp.asarray(train.labels))
        recipe = experiment.build_recipe(len(train.labels))
        key = jax.random.key(0)
        state = init_state(objective, recipe.optimizer, jnp.zeros((1, *train.images.shape[1:])), key=key)
        # In the last epoch: what begins late in training has begun.
        state = dataclasses.replace(hooks.start(experiment, state), epoch=jnp.int32(experiment.epochs - 1))
        arguments = {"key": key, "recipe": recipe, "epochs": experiment.epochs, "steps_per_chunk": 10**6}
        runs[name] = [run_epoch(state, objective, examples, **arguments)[0], objective, examples, arguments]
        print(f"compiled {name}", file=sys.stderr)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            state, objective, examples, arguments = run
            began = time.perf_counter()
            run[0] = jax.block_until_ready(run_epoch(state, objective, examples, **arguments)[0])
            steps = len(examples.labels) // arguments["recipe"].batch_size
            speeds[name].append(steps * arguments["recipe"].batch_size / (time.perf_counter() - began))
    return speeds


def main(argv: Sequence[str]) -> None:
    """The command."""
    overrides, rest = arguments.split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("config", "embedded", "Config, without a method.", flag_values=values)
    flags.DEFINE_list("methods", list(METHODS), "Methods.", flag_values=values)
    flags.DEFINE_integer("repeats", 0, "Rounds of measuring; 0 only counts.", flag_values=values)
    arguments.parse(values, rest, __doc__)
    names = dict.fromkeys(["pgd_at", *values.methods])
    methods = {name: config.load(f"{values.config}:{name}", overrides, checked=False) for name in names}
    speeds = measure(methods, values.repeats) if values.repeats else {}
    if speeds:
        about = describe_run()
        print(f"{about['devices'][0]}, python {about['versions']['python']}, jax {about['versions']['jax']}\n")
    print(to_markdown(methods, speeds))


def to_markdown(methods: dict[str, Experiment], speeds: dict[str, list[float]]) -> str:
    """The counts, and the median over rounds of each method's speed over PGD-AT's."""
    heads = ("method", "forwards", "gradients by images", "gradients by weights")
    rows = []
    for name, experiment in methods.items():
        counts = count_passes(experiment)
        cells = [_interval(*counts[kind]) for kind in ("forward", "images", "weights")]
        if speeds:
            ratios = [mine / base for mine, base in zip(speeds[name], speeds["pgd_at"])]
            cells += [f"{statistics.median(speeds[name]):.0f}", f"{statistics.median(ratios):.2f}"]
        rows.append([f"`{experiment.method}`", *cells])
    return markdown.table((*heads, "img/s", "of PGD-AT") if speeds else heads, rows)


def _interval(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


if __name__ == "__main__":
    errors.leave(errors.run(main))
