"""From a config to the objects it describes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from piat_jax import models
from piat_jax.attacks import ATTACKS
from piat_jax.averaging import EQUAL_WEIGHT, PIAT, Average, RationalWeight, WarmupDecay
from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import datasets
from piat_jax.cli.config import Config
from piat_jax.cli.methods import parse_method
from piat_jax.cli.run_folder import CHECKPOINTS
from piat_jax.core.bound import Bound, bind
from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded
from piat_jax.core.sharding import data_mesh
from piat_jax.core.types import Array, Attack, Model, Variables
from piat_jax.data.batching import steps_per_epoch
from piat_jax.objectives import LAS, METHODS, WRAPPERS, AttackedObjective, Wrapper
from piat_jax.training import Recipe, piecewise_linear, sgd


def model(config: Config, num_classes: int, *, dtype: str = "") -> models.LinenModel:
    """The model, for this many classes; `dtype` in place of the config's."""
    # Runs saved before a model took something more keep its default.
    fields = {name: value for name, value in config.model.items() if name not in ("name", "weights", "options")}
    fields |= dict(config.model.options.items()) | ({"dtype": dtype} if dtype else {})
    return models.create(config.model.name, num_classes=num_classes, **fields)


def attack(config: Config) -> Bound:
    """The training attack, checked on a one-pixel image."""
    options = dict(config.attack.items())
    bound = bind(ATTACKS["pgd"], **options)
    try_attack(bound)
    return bound


def objective(
    config: Config, net: Model, training_attack: Attack, image_shape: Sequence[int] = ()
) -> AttackedObjective | Wrapper:
    """The method around a model and an attack; without `image_shape[H, W, C]` no teacher's weights are loaded."""
    stack = parse_method(config.method)
    built: AttackedObjective | Wrapper = METHODS[stack.base](
        model=net, attack=training_attack, **dict(config.objective.items())
    )
    for name in stack.wrappers:
        options = dict(config[name].items())
        if name == "las":
            options["strategy"] = _strategy(config, LAS.num_actions(**options))
        if name == "kd":
            options |= {kind: _teacher(config, net, kind, image_shape) for kind in ("standard", "robust")}
        try:
            built = WRAPPERS[name](built, **options)
        except InputError as error:
            of_field = str(error).partition("=")[0] in options
            raise InputError(f"{name}{'.' if of_field else ': '}{error}") from error
    return built


def _strategy(config: Config, num_actions: int) -> Model:
    """LAS-AT's strategy network; the model's own options are used if it is of the same kind."""
    fields, name = config.model, config.las.strategy
    options = dict(fields.options.items()) if name == fields.name else {}
    return models.create(name, num_classes=num_actions, dtype=fields.dtype, **options)


def _teacher(config: Config, net: Model, kind: str, image_shape: Sequence[int]) -> Variables:
    """The best checkpoint of the run that `config.kd.standard` or `config.kd.robust` names."""
    text = config.kd[kind]
    if not text:
        raise InputError(f"kd.{kind} is empty; give the folder of a run trained with another method")
    saved = Checkpoints(expanded(text) / CHECKPOINTS)
    if "best" not in saved:
        raise InputError(f"kd.{kind}={text!r} has no best checkpoint; give the folder of a finished run")
    if not image_shape:
        return Variables({}, {})
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    # As fresh arrays: one bound to a device would bind the state in the first epoch, and the second compile anew.
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), saved.load_variables("best", like))


def piat(config: Config) -> PIAT:
    """The interpolation hook."""
    fields = config.piat
    return PIAT(
        weight=RationalWeight(fields.a, fields.b, fields.c, fields.d),
        first_epoch=fields.first_epoch,
        batch_stats=fields.batch_stats,
        momentum=fields.momentum,
    )


def average(config: Config) -> Average | None:
    """The average beside the weights, if the method has one."""
    name = parse_method(config.method).average
    if not name:
        return None
    fields, when = config.average, {"start": config.average.start, "epochs": config.epochs}
    if name == "swa":
        return Average(EQUAL_WEIGHT, batch_stats="recompute", **when)
    if name == "fawa":
        return Average(fields.decay, **when)
    warmed_up = name == "seat" or fields.warmup
    return Average(WarmupDecay(fields.decay) if warmed_up else fields.decay, every="step", **when)


def schedule(config: Config, steps: int) -> optax.Schedule:
    """The learning rate of each optimizer step."""
    return piecewise_linear(config.optimizer.lr_epochs, config.optimizer.lr_values, steps)


def sgd_options(config: Config) -> dict[str, Any]:
    """What `sgd` takes beside the learning rate."""
    return {name: value for name, value in config.optimizer.items() if not name.startswith("lr_")}


def recipe(config: Config, num_train: int) -> Recipe:
    """Optimizer, batch size and augmentation."""
    learning_rate = schedule(config, steps_per_epoch(num_train, config.batch_size))
    return Recipe(
        optimizer=sgd(learning_rate, **sgd_options(config)),
        step_end=(kept.after_step,) if (kept := average(config)) and kept.every == "step" else (),
        batch_size=config.batch_size,
        **datasets.augmentation(config),
        extra_per_batch=datasets.extra_per_batch(config),
        mesh=data_mesh(config.batch_size),
        split_state=config.fsdp,
        skip_nonfinite=config.nonfinite == "skip",
    )


def try_attack(bound: Bound) -> None:
    """Trace an attack on one pixel, so that it checks its arguments; nothing is computed.

    `problems` looks at eps itself, by its name in the config.
    """
    bound = bind(bound, eps=0.5)
    image = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)

    def run(x: Array, y: Array) -> Array:
        return bound(lambda x: jnp.concatenate([x, -x], axis=-1).reshape(1, 2), x, y, key=jax.random.key(0))

    jax.eval_shape(run, image, label)
