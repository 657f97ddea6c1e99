"""From a config to the objects it describes, and the checks that need only the config."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from piat_jax import models
from piat_jax.attacks import ATTACKS
from piat_jax.attacks.ensemble import MEMBERS
from piat_jax.averaging import (
    EQUAL_WEIGHT,
    PIAT,
    Average,
    Gated,
    RationalWeight,
    WarmupDecay,
    averaged,
    recompute_batch_stats,
)
from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import datasets
from piat_jax.cli.config import Config
from piat_jax.cli.methods import parse_method
from piat_jax.cli.run_folder import CHECKPOINTS
from piat_jax.core.bound import Bound, bind
from piat_jax.core.checks import (
    InputError,
    check_at_least,
    check_choice,
    check_range,
    did_you_mean,
)
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.rng import named_key
from piat_jax.core.sharding import data_mesh
from piat_jax.core.types import Array, Attack, EpochEnd, Model, Objective, TrainState, Variables
from piat_jax.data import Split
from piat_jax.data.batching import steps_per_epoch
from piat_jax.evaluation import AutoAttack, correct_under_attack, worst_class
from piat_jax.objectives import LAS, METHODS, WRAPPERS, AttackedObjective, Wrapper
from piat_jax.training import Recipe, piecewise_linear, sgd


def problems(config: Config) -> list[str]:
    """Everything that is wrong with a config's values, one line each; touches neither data nor device."""
    found = []

    def attempt(check: Callable[..., Any], *arguments: Any, group: str = "", **options: Any) -> None:
        try:
            check(*arguments, **options)
        except InputError as error:
            # A field that is named without its group: momentum=... is PIAT's or the optimizer's.
            inside = f"{group}." if group and re.match(r"\w+=", str(error)) else ""
            found.append(f"config: {inside}{error}")

    for name in ("epochs", "batch_size"):
        attempt(check_at_least, name, config[name], 1)
    for name in ("evaluation.every_epochs", "evaluation.batch_size", "checkpoint.every_epochs", "log.steps_per_chunk"):
        group, _, field = name.partition(".")
        attempt(check_at_least, name, config[group][field], 1)
    attempt(check_choice, "nonfinite", config.nonfinite, ("stop", "skip"))
    datasets.problems(config, attempt)
    attempt(_check_stream, config)
    for group in ("attack", "evaluation"):
        eps, norm = config[group].eps, config[group].norm
        if group == "attack" or eps != config.attack.eps:
            attempt(check_range, f"{group}.eps", eps, 0, 1 if norm == "linf" else float("inf"), open_low=True)
    attempt(attack, config, group="attack")
    for name in dict.fromkeys((*config.evaluation.attacks, *config.evaluation.final_attacks)):
        attempt(evaluation_attack, config, name)
    if config.evaluation.select not in config.evaluation.attacks:
        hint = did_you_mean(config.evaluation.select, config.evaluation.attacks)
        found.append(f"config: evaluation.select={config.evaluation.select!r} is not evaluated during training{hint}")
    attempt(check_choice, "evaluation.precision", config.evaluation.precision, ("highest", "default"))
    attempt(model, config, 10)
    attempt(_check_groups, config)
    attempt(piat, config, group="piat")
    attempt(average, config, group="average")
    attempt(sgd, 0.1, **_sgd_options(config), group="optimizer")
    attempt(piecewise_linear, config.optimizer.lr_epochs, config.optimizer.lr_values, 1, group="optimizer")
    if not any(line.startswith(("config: model", "config: mean", "config: dtype")) for line in found):
        try:
            training_attack = attack(config)
        except InputError:  # listed already
            training_attack = bind(ATTACKS["pgd"])
        attempt(objective, config, model(config, 10), training_attack)
    if parse_method(config.method).average == "fawa" and not config.dataset.validation_examples:
        found.append("config: fawa averages by accuracy on held-out images; set dataset.validation_examples")
    return list(dict.fromkeys(found))


def model(config: Config, num_classes: int, *, dtype: str = "") -> models.LinenModel:
    """The model, for this many classes; `dtype` in place of the config's."""
    # Runs saved before a model took something more keep its default.
    fields = {name: value for name, value in config.model.items() if name not in ("name", "weights", "options")}
    fields |= dict(config.model.options.items()) | ({"dtype": dtype} if dtype else {})
    return models.create(config.model.name, num_classes=num_classes, **fields)


def _check_groups(config: Config) -> None:
    groups = model(config, 10).bn_groups
    if config.batch_size % groups:
        raise InputError(f"model.bn_groups={groups} does not divide batch_size={config.batch_size}")


def attack(config: Config) -> Bound:
    """The training attack, checked on a one-pixel image."""
    options = dict(config.attack.items())
    bound = bind(ATTACKS["pgd"], **options)
    _try(bound)
    return bound


def evaluation_attack(config: Config, name: str) -> Attack | AutoAttack | None:
    """The attack called `name`: a name and its number of steps, as in "clean", "pgd20", "fgsm", "aa" or "apgd-ce50"."""
    if name == "clean":
        return None
    match = re.fullmatch(r"([a-z_-]*[a-z])(\d*)", name)
    kind, steps = match.groups() if match else (name, "")
    if kind in ("aa", "aa-plus") or kind in MEMBERS:
        return _autoattack(config, kind, steps)
    if kind not in ATTACKS:
        known = ["clean", *(f"{known}{'' if known == 'fgsm' else '20'}" for known in ATTACKS), "aa", "aa-plus"]
        raise InputError(f"attack {name!r} is unknown{did_you_mean(name, [*known, *MEMBERS])}")
    fields = config.evaluation
    options: dict[str, Any] = {"eps": fields.eps, "norm": fields.norm}
    if kind == "fgsm":
        if steps not in ("", "1"):
            raise InputError(f"attack {name!r}: fgsm takes one step; did you mean 'mi_fgsm{steps}' or 'pgd{steps}'?")
    elif not steps:
        raise InputError(f"attack {name!r} needs its number of steps; did you mean '{kind}20'?")
    else:
        options |= {"step_size": fields.step_size, "steps": int(steps)}
        if kind in ("pgd", "cw"):
            options["restarts"] = fields.restarts
    bound = bind(ATTACKS[kind], **options)
    _try(bound)
    return bound


def _autoattack(config: Config, kind: str, number: str) -> AutoAttack:
    """AutoAttack, or one of its members, with its own numbers unless one is given: of steps, or queries for Square."""
    fields = config.evaluation
    if number and kind not in MEMBERS:
        raise InputError(f"attack {kind + number!r}: {kind} takes no number; its numbers are AutoAttack's")
    options: dict[str, Any] = {"attacks": (kind,)} if kind in MEMBERS else {}
    if number:
        options["queries" if kind == "square" else "steps"] = int(number)
    return AutoAttack(
        eps=fields.eps,
        norm=fields.norm,
        version="plus" if kind == "aa-plus" else "standard",
        seed=config.seed,
        block_size=fields.batch_size,
        precision=fields.precision,
        **options,
    )


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
    saved = Checkpoints(Path(text).expanduser() / CHECKPOINTS)
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
    if name == "seat":
        return Average(WarmupDecay(fields.decay), period="step", **when)
    return Average(fields.decay, period="step" if name == "ema" else "epoch", **when)


def start(config: Config, state: TrainState) -> TrainState:
    """A fresh state with what PIAT and an average keep beside the weights."""
    kept = average(config)
    if parse_method(config.method).piat:
        state = piat(config).start(state)
    return kept.start_average(state) if kept else state


def epoch_end(config: Config, net: Model, images: Any, num_classes: int, monitor: Split) -> list[EpochEnd]:
    """The hooks after each epoch: PIAT, then the average, each followed by new statistics where they are asked for.

    `images` are the training images, uint8; `monitor` is what FAWA decides on.
    """
    hooks: list[EpochEnd] = []
    stack, kept = parse_method(config.method), average(config)
    if stack.piat:
        hooks.append(jax.jit(piat(config), donate_argnums=0))
        if config.piat.batch_stats == "recompute":
            hooks.append(_recomputed(config, net, images, lambda state: state.variables, _with_variables))
    if kept and kept.period == "epoch":
        hook: EpochEnd = jax.jit(kept, donate_argnums=0)
        if stack.average == "fawa":
            hook = Gated(hook, _worst_class_reaches(config, num_classes, monitor))
        hooks.append(hook)
        if kept.batch_stats == "recompute":
            anew = _recomputed(config, net, images, averaged, _with_average)
            first = round(kept.start * config.epochs)
            hooks.append(lambda state, epoch: anew(state, epoch) if int(epoch) > first else state)
    return hooks


def _recomputed(
    config: Config,
    net: Model,
    images: Array,
    get: Callable[[TrainState], Variables],
    put: Callable[[TrainState, Variables], TrainState],
) -> EpochEnd:
    """Estimates the statistics of some variables anew on the clean training images."""
    count = steps_per_epoch(len(images), config.batch_size)
    # Mixed, as training mixes them: batches of data that lie class by class have other variances.
    order = np.random.default_rng(config.seed).permutation(len(images))[: count * config.batch_size]

    @jax.jit
    def recompute(state: TrainState, images: Array, order: Array) -> TrainState:
        return put(state, recompute_batch_stats(net, get(state), images[order]))

    batches = jnp.asarray(order.reshape(count, config.batch_size), jnp.int32)
    return lambda state, epoch: recompute(state, images, batches)


def _check_stream(config: Config) -> None:
    """Raise InputError where statistics are to be estimated anew on training images that stay on the host."""
    kept = average(config)
    anew = (parse_method(config.method).piat and config.piat.batch_stats == "recompute") or (
        kept and kept.period == "epoch" and kept.batch_stats == "recompute"
    )
    if config.dataset.stream and anew:
        raise InputError(
            f"dataset.stream=True keeps the training images on the host, and {config.method} estimates BatchNorm "
            "statistics on them anew; leave out swa or piat.batch_stats=recompute, or set dataset.stream=False"
        )


def _with_variables(state: TrainState, variables: Variables) -> TrainState:
    return dataclasses.replace(state, model_state=variables.model_state)


def _with_average(state: TrainState, variables: Variables) -> TrainState:
    assert state.average is not None
    kept = state.average.variables._replace(model_state=variables.model_state)
    return dataclasses.replace(state, average=state.average._replace(variables=kept))


def _worst_class_reaches(config: Config, num_classes: int, split: Split) -> Callable[[TrainState], bool]:
    """Whether PGD-10 leaves every class of the held-out images at least `average.threshold` accurate."""
    correct = evaluator(config, num_classes, split)
    return lambda state: bool(
        worst_class(correct(state.variables, evaluation_attack(config, "pgd10")), split.labels, num_classes)
        >= config.average.threshold
    )


def evaluated(objective: Objective, state: TrainState) -> Variables:
    """What a method evaluates: the average if one is kept, else what the objective says, mostly the weights."""
    return averaged(state) if state.average else objective.eval_variables(state.variables, state.objective_state)


def schedule(config: Config, steps: int) -> optax.Schedule:
    """The learning rate of each optimizer step."""
    return piecewise_linear(config.optimizer.lr_epochs, config.optimizer.lr_values, steps)


def _sgd_options(config: Config) -> dict[str, Any]:
    """What `sgd` takes beside the learning rate."""
    return {name: value for name, value in config.optimizer.items() if not name.startswith("lr_")}


def recipe(config: Config, num_train: int) -> Recipe:
    """Optimizer, batch size and augmentation."""
    learning_rate = schedule(config, steps_per_epoch(num_train, config.batch_size))
    return Recipe(
        optimizer=sgd(learning_rate, **_sgd_options(config)),
        step_end=(kept.after_step,) if (kept := average(config)) and kept.period == "step" else (),
        batch_size=config.batch_size,
        **datasets.augmentation(config),
        extra_per_batch=datasets.extra_per_batch(config),
        mesh=data_mesh(config.batch_size),
        split_state=config.fsdp,
        skip_nonfinite=config.nonfinite == "skip",
    )


def monitor_name(config: Config) -> str:
    """What is evaluated during training: "validation" if examples are held out for it, else "test"."""
    return "validation" if config.dataset.validation_examples else "test"


def monitor(
    config: Config,
    objective: Objective,
    num_classes: int,
    split: Split,
    on_block: Callable[[], None] = lambda: None,
) -> Callable[[TrainState, int], dict[str, float]]:
    """Evaluation during training: accuracy of the state under each attack, in the epochs where it is due."""
    attacks = {name: evaluation_attack(config, name) for name in config.evaluation.attacks}
    correct = evaluator(config, num_classes, split, on_block)

    def evaluate(state: TrainState, epoch: int) -> dict[str, float]:
        if epoch % config.evaluation.every_epochs and epoch != config.epochs:
            return {}
        prefix = monitor_name(config)
        variables = evaluated(objective, state)
        return {f"{prefix}_{name}": float(correct(variables, attack).mean()) for name, attack in attacks.items()}

    return evaluate


def evaluator(
    config: Config, num_classes: int, split: Split, on_block: Callable[[], None] = lambda: None
) -> Callable[[Variables, Attack | AutoAttack | None], np.ndarray]:
    """Which examples of `split` given weights classify under an attack: float32 activations, precise products."""
    net = model(config, num_classes, dtype="float32")
    images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)
    key = named_key(jax.random.key(config.seed), "evaluate")
    precision = None if config.evaluation.precision == "default" else config.evaluation.precision
    mesh = data_mesh(jax.device_count())  # all: blocks are padded to whatever can be shared out

    def correct(variables: Variables, attack: Attack | AutoAttack | None) -> np.ndarray:
        if isinstance(attack, AutoAttack):
            return attack.run(make_logits_fn(net, variables), images, labels).robust
        with jax.default_matmul_precision(precision):
            return correct_under_attack(
                net,
                variables,
                images,
                labels,
                attack,
                key=key,
                batch_size=config.evaluation.batch_size,
                mesh=mesh,
                on_block=on_block,
            )

    return correct


def _try(bound: Bound) -> None:
    """Trace an attack on one pixel, so that it checks its arguments; nothing is computed.

    `problems` looks at eps itself, by its name in the config.
    """
    bound = bind(bound, eps=0.5)
    image = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)

    def run(x: Array, y: Array) -> Array:
        return bound(lambda x: jnp.concatenate([x, -x], axis=-1).reshape(1, 2), x, y, key=jax.random.key(0))

    jax.eval_shape(run, image, label)
