"""The accuracies that a config asks for: under which attacks, and how they are measured."""

import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.attacks import ATTACKS
from piat_jax.attacks.ensemble import MEMBERS
from piat_jax.averaging import averaged
from piat_jax.cli import build
from piat_jax.cli.config import Config
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError, did_you_mean
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.multihost import is_first
from piat_jax.core.rng import named_key
from piat_jax.core.sharding import data_mesh
from piat_jax.core.types import Attack, Objective, TrainState, Variables
from piat_jax.data import Split
from piat_jax.evaluation import AutoAttack, Finding, correct_under_attack


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
    build.try_attack(bound)
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


def settings_of(config: Config) -> dict[str, Any]:
    """What accuracies depend on, beside the examples and the attack's name."""
    fields = ("eps", "step_size", "norm", "restarts", "precision")
    return {"seed": config.seed, **{field: config.evaluation[field] for field in fields}}


def evaluated(objective: Objective, state: TrainState) -> Variables:
    """What a method evaluates: the average if one is kept, else what the objective says, mostly the weights."""
    return averaged(state) if state.average else objective.eval_variables(state.variables, state.objective_state)


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


def _tell(finding: Finding) -> None:
    if is_first():
        print(f"note: {finding.message}", file=sys.stderr)


def evaluator(
    config: Config, num_classes: int, split: Split, on_block: Callable[[], None] = lambda: None
) -> Callable[[Variables, Attack | AutoAttack | None], np.ndarray]:
    """Which examples of `split` given weights classify under an attack: float32 activations, precise products."""
    net = build.model(config, num_classes, dtype="float32")
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
                on_finding=_tell,
            )

    return correct
