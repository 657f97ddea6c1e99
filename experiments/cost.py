"""What each method costs: passes through the network counted in the compiled step, and images per second measured.

    python -m experiments.cost --config=configs/embedded.py --methods=trades,awp --repeats=5

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
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import arguments, build, datasets, errors, hooks
from piat_jax.cli.config import Config, apply_overrides, load_config, split_overrides
from piat_jax.cli.run_folder import CHECKPOINTS, describe_run
from piat_jax.core.checks import InputError
from piat_jax.core.forward import forward_flop
from piat_jax.core.jaxprs import inner_jaxprs
from piat_jax.core.types import Array, Batch, Model, Objective, TrainState, Variables
from piat_jax.data import KNOWN, load
from piat_jax.training import Examples, init_state, run_epoch, train_step

# Sizes no two of which are equal or multiples, so that a product's shapes say what it is.
BATCH, FEATURES, CLASSES = 64, (1, 7, 1), 3
METHODS = (
    "standard", "pgd_at", "alp", "trades", "mart", "nmse", "mail", "trades+mail", "gairat", "fat", "cfa", "trades+cfa",
    "rat", "consistency", "trades+consistency", "awp", "trades+awp", "rpat", "trades+rpat", "mart+rpat",
    "consistency+rpat", "rebat", "rpatpp", "kd+swa", "ema", "ecas", "trades+ecas", "awp+ecas", "las", "trades+las",
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


def make_objective(config: Config, net: Model, image_shape: Sequence[int]) -> Objective:
    """The method; where it needs teachers, random ones, which cost the same."""
    if "kd" not in config:
        return build.objective(config, net, build.attack(config), image_shape)
    with tempfile.TemporaryDirectory() as folder:
        config.kd.standard = config.kd.robust = folder
        variables = net.init(jax.random.key(0), jnp.zeros((1, *image_shape)))
        state = TrainState(step=0, epoch=0, opt_state=(), objective_state=(), **variables._asdict())  # type: ignore[arg-type]
        Checkpoints(Path(folder) / CHECKPOINTS).save("best", state, {"epoch": 0})
        return build.objective(config, net, build.attack(config), image_shape)


def read(text: str, overrides: dict[str, str]) -> Config:
    """The config, which may lack its teachers."""
    config = load_config(text)
    if found := apply_overrides(config, overrides):
        raise InputError("\n".join(found))
    return config


def count_passes(config: Config) -> dict[str, tuple[float, float]]:
    """Forwards, image gradients and weight gradients of one step, in batches: the fewest and the most of any step."""
    config = config.copy_and_resolve_references()
    # What names parts of a real network; neither changes a count.
    if "rat" in config:
        config.rat.head = ("linear", "dense", "kernel")
    if "ard_prm" in config:
        config.ard_prm.ard, config.ard_prm.patch_size = False, 1
    objective = make_objective(config, OneProduct(), FEATURES)
    recipe = build.recipe(config, config.batch_size)
    images = jnp.zeros((1, *FEATURES))
    size = BATCH * objective.views

    def step(key: Array) -> Any:
        state = hooks.start(config, init_state(objective, recipe.optimizer, images, key=key))
        batch = Batch(jnp.full((size, *FEATURES), 0.5), jnp.arange(size) % CLASSES, jnp.arange(size))
        return train_step(objective, recipe.optimizer, state, batch, key=key, epochs=10)

    low, high = _count(jax.make_jaxpr(step)(jax.random.key(0)).jaxpr)
    return {kind: (low[kind] / BATCH, high[kind] / BATCH) for kind in ("forward", "images", "weights")}


def training_flop(config: Config) -> float:
    """Floating-point operations of a whole training run, evaluation aside.

    A pass forward, one back to the images and one back to the weights count the same. Where steps differ, the mean of
    the fewest and the most passes is taken; the data set need not be there.

    Raises:
      InputError: the size of the data set is not known without reading it.
    """
    name = config.dataset.name
    if name == "embedded":
        data = load(name)
        shape, examples, classes = data.train.images.shape[1:], len(data.train.labels), data.num_classes
    elif name in KNOWN:
        shape, examples, classes = KNOWN[name].image_shape, KNOWN[name].train, KNOWN[name].classes
    else:
        raise InputError(f"dataset.name={name!r} has no size known in advance; choose one of {', '.join(KNOWN)}")
    examples = (config.dataset.train_examples or examples) - config.dataset.validation_examples
    passes = sum(sum(pair) / 2 for pair in count_passes(config).values())
    images = config.epochs * (examples // config.batch_size) * config.batch_size
    return passes * images * forward_flop(build.model(config, classes), shape)


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
    """What a matrix product does, and for how many examples."""
    shapes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
    inside = math.prod(FEATURES)
    examples = max((axis for shape in shapes for axis in shape if axis % BATCH == 0), default=0)
    if not examples or {inside, CLASSES} not in map(set, shapes):
        return "", 0
    out = shapes[2]
    if set(out) == {examples, inside}:
        return "images", examples
    return ("forward", examples) if examples in out else ("weights", examples)


def measure(configs: dict[str, Config], repeats: int) -> dict[str, list[float]]:
    """Images per second of each method's epochs, all methods in turn, `repeats` rounds; compilation is not counted."""
    runs = {}
    for name, config in configs.items():
        data, train, _ = datasets.dataset(config)
        objective = make_objective(config, build.model(config, data.num_classes), train.images.shape[1:])
        examples = Examples(jnp.asarray(train.images), jnp.asarray(train.labels))
        recipe = build.recipe(config, len(train.labels))
        key = jax.random.key(0)
        state = init_state(objective, recipe.optimizer, jnp.zeros((1, *train.images.shape[1:])), key=key)
        # In the last epoch: what begins late in training has begun.
        state = dataclasses.replace(hooks.start(config, state), epoch=jnp.int32(config.epochs - 1))
        arguments = {"key": key, "recipe": recipe, "epochs": config.epochs, "steps_per_chunk": 10**6}
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
    overrides, rest = split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("config", "configs/embedded.py", "Config file, without a method.", flag_values=values)
    flags.DEFINE_list("methods", list(METHODS), "Methods.", flag_values=values)
    flags.DEFINE_integer("repeats", 0, "Rounds of measuring; 0 only counts.", flag_values=values)
    arguments.parse(values, rest, __doc__)
    names = dict.fromkeys(["pgd_at", *values.methods])
    configs = {name: read(f"{values.config}:{name}", overrides) for name in names}
    speeds = measure(configs, values.repeats) if values.repeats else {}
    if speeds:
        about = describe_run()
        print(f"{about['devices'][0]}, python {about['versions']['python']}, jax {about['versions']['jax']}\n")
    print(table(configs, speeds))


def table(configs: dict[str, Config], speeds: dict[str, list[float]]) -> str:
    """Markdown: the counts, and the median over rounds of each method's speed over PGD-AT's."""
    lines = [
        "| method | forwards | gradients by images | gradients by weights |"
        + (" img/s | of PGD-AT |" if speeds else ""),
        "|---|---:|---:|---:|" + ("---:|---:|" if speeds else ""),
    ]
    for name, config in configs.items():
        counts = count_passes(config)
        cells = [_interval(*counts[kind]) for kind in ("forward", "images", "weights")]
        if speeds:
            ratios = [mine / base for mine, base in zip(speeds[name], speeds["pgd_at"])]
            cells += [f"{statistics.median(speeds[name]):.0f}", f"{statistics.median(ratios):.2f}"]
        lines.append(f"| `{config.method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


if __name__ == "__main__":
    sys.exit(errors.run(main))
