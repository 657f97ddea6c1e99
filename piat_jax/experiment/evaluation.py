"""An experiment's accuracies: which attacks, and how they are measured."""

import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.attacks import ATTACKS, MINIMUM_NORM, takes
from piat_jax.attacks.ensemble import MEMBERS
from piat_jax.attacks.registry import TO_TRAIN_WITH
from piat_jax.averaging import averaged
from piat_jax.core.bound import Bound, bind
from piat_jax.core.checks import InputError, did_you_mean
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.multihost import is_first
from piat_jax.core.rng import named_key
from piat_jax.core.sharding import data_mesh
from piat_jax.core.types import Array, Attack, LogitsFn, Model, Objective, TrainState, Variables
from piat_jax.data import Split
from piat_jax.data.records.listed import read_list
from piat_jax.evaluation import AutoAttack, AutoAttackUnion, Finding, Judged, correct_under_attack, judge_under_attack
from piat_jax.evaluation.minimum_norm import MinimumNormAttack, MinimumNorms, minimum_norms
from piat_jax.evaluation.sending import placed
from piat_jax.evaluation.union import UNION, UNION_EPS
from piat_jax.experiment.experiment import Experiment, try_attack

UNION_ATTACK = "aa-union"
UNION_PARTS = tuple(f"aa-{norm}" for norm in UNION)
WHOLE = ("aa", "aa-plus", UNION_ATTACK, *UNION_PARTS)
"""AutoAttack's ensembles, which take no number of steps."""
EvaluationAttack = Bound | AutoAttack | AutoAttackUnion | MinimumNormAttack


def evaluation_attack(experiment: Experiment, name: str) -> EvaluationAttack | None:
    """The attack for a name and number of steps, such as "clean", "pgd20", "fgsm", "aa" or "apgd-ce50"."""
    if name == "clean":
        return None
    match = re.fullmatch(r"([a-z_-]*[a-z])(\d*)", name)
    kind, steps = match.groups() if match and name not in WHOLE else (name, "")
    if kind in WHOLE or kind in MEMBERS:
        return _autoattack(experiment, kind, steps)
    if kind in TO_TRAIN_WITH:
        raise InputError(f"attack {name!r} is for training only: its images may leave the ball; did you mean 'pgd20'?")
    if kind in MINIMUM_NORM:
        return _minimum_norm(experiment, kind, steps)
    if kind not in ATTACKS:
        known = [
            "clean",
            *(f"{known}100" for known in MINIMUM_NORM),
            *(f"{known}{'20' if 'steps' in takes(known) else ''}" for known in ATTACKS if known not in TO_TRAIN_WITH),
            *WHOLE,
        ]
        raise InputError(f"attack {name!r} is unknown{did_you_mean(name, [*known, *MEMBERS])}")
    fields, taken = experiment.evaluation, takes(kind)
    options: dict[str, Any] = {"eps": fields.eps, "norm": fields.norm}
    if "steps" not in taken:
        if steps not in ("", "1"):
            raise InputError(f"attack {name!r}: {kind} takes one step; did you mean 'mi_fgsm{steps}' or 'pgd{steps}'?")
    elif not steps:
        raise InputError(f"attack {name!r} needs its number of steps; did you mean '{kind}20'?")
    else:
        options["steps"] = int(steps)
    options |= {field: getattr(fields, field) for field in ("step_size", "restarts") if field in taken}
    bound = bind(ATTACKS[kind], **options)
    try_attack(bound)
    return bound


def _minimum_norm(experiment: Experiment, kind: str, steps: str) -> MinimumNormAttack:
    """A minimum-norm attack in the evaluation's norm; the evaluation's radius is not used."""
    if not steps:
        raise InputError(f"attack {kind!r} needs its number of steps; did you mean '{kind}100'?")
    bound = bind(MINIMUM_NORM[kind], norm=experiment.evaluation.norm, steps=int(steps))
    image, label = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)

    def run(x: Array, y: Array) -> Any:
        return bound(lambda x: jnp.concatenate([x, -x], axis=-1).reshape(1, 2), x, y, key=jax.random.key(0))

    try:
        jax.eval_shape(run, image, label)  # so that it checks its arguments
    except InputError as error:
        group = "evaluation." if str(error).startswith("norm=") else ""
        raise InputError(f"attack {kind + steps!r}: {group}{error}") from error
    return MinimumNormAttack(bound, experiment.evaluation.eps)


def is_minimum_norm(name: str) -> bool:
    """Whether this name is a minimum-norm attack's, which searches for the nearest misclassified image."""
    return name.rstrip("0123456789") in MINIMUM_NORM


def _autoattack(experiment: Experiment, kind: str, number: str) -> AutoAttack | AutoAttackUnion:
    """AutoAttack or one of its members, with a given number of steps (Square: queries) or AutoAttack's defaults."""
    fields = experiment.evaluation
    if number and kind not in MEMBERS:
        raise InputError(f"attack {kind + number!r}: {kind} takes no number; its numbers are AutoAttack's")
    options: dict[str, Any] = {"attacks": (kind,)} if kind in MEMBERS else {}
    if number:
        options["queries" if kind == "square" else "steps"] = int(number)
    settings = AutoAttack(
        eps=fields.eps,
        norm=fields.norm,
        version="plus" if kind == "aa-plus" else "standard",
        seed=experiment.seed,
        block_size=fields.batch_size,
        precision=fields.precision,
        attack_precision=fields.attack_precision,
        **options,
    )
    if kind != UNION_ATTACK and kind not in UNION_PARTS:
        return settings
    try:
        union = AutoAttackUnion(eps=fields.union_eps, settings=settings)
    except InputError as error:
        raise InputError(f"evaluation.union_{error}") from error
    return union if kind == UNION_ATTACK else union.parts()[kind.removeprefix("aa-")]


def seen_by_attacks(experiment: Experiment, net: Model, variables: Variables) -> LogitsFn | None:
    """The logits function for AutoAttack's attacks if it differs from the judge's, else None.

    With bfloat16 its activations are bfloat16, since accelerators' bfloat16 products take bfloat16 operands.
    """
    if experiment.evaluation.attack_precision != "bfloat16":
        return None
    return make_logits_fn(in_bfloat16(net), variables)


def in_bfloat16(net: Model) -> Model:
    """The same network with activations in bfloat16.

    Raises:
      InputError: it is not a Flax network with a field `dtype`.
    """
    module = getattr(net, "module", None)
    if not hasattr(module, "dtype"):
        raise InputError(
            f"attack_precision='bfloat16' needs a network with a field dtype, and {type(net).__name__} has none; "
            "give 'tensorfloat32' or 'same'"
        )
    return dataclasses.replace(net, module=module.clone(dtype=jnp.bfloat16))  # type: ignore[type-var, union-attr]


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """The settings that accuracies depend on, besides the examples and the attack's name."""
    fields = ["eps", "step_size", "norm", "restarts", "precision"]
    if experiment.evaluation.attack_precision != "same":  # earlier results do not have the field
        fields.append("attack_precision")
    settings = {"seed": experiment.seed, **{field: getattr(experiment.evaluation, field) for field in fields}}
    if experiment.dataset.test_list:
        settings["test_list"] = _digest_of_list(experiment.dataset.test_list)
    if experiment.evaluation.union_eps != UNION_EPS:
        settings["union_eps"] = list(experiment.evaluation.union_eps)
    return settings


def _digest_of_list(path: str) -> str:
    """The name of a list of images, and a digest of its content."""
    names = "\n".join(map(str, read_list(path)))
    return f"{Path(path).name} {hashlib.sha256(names.encode()).hexdigest()[:12]}"


def evaluated(objective: Objective, state: TrainState) -> Variables:
    """The weights that a method evaluates: the average if there is one, else the objective's choice."""
    return averaged(state) if state.average else objective.eval_variables(state.variables, state.objective_state)


def evaluated_beside(state: TrainState) -> dict[str, Variables]:
    """The further averages, which are evaluated as well, by name."""
    return {name: averaged(state, name) for name in state.further_averages}


def monitor(
    experiment: Experiment,
    objective: Objective,
    num_classes: int,
    split: Split,
    *,
    on_block: Callable[[], None] = lambda: None,
    note: Callable[[str], None] = lambda text: None,
) -> Callable[[TrainState, int], dict[str, float]]:
    """Evaluation during training: the state's accuracy under each attack, in the epochs where it is due."""
    attacks = {name: evaluation_attack(experiment, name) for name in experiment.evaluation.attacks}
    net = experiment.build_model(num_classes, dtype="float32")
    correct = evaluator(experiment, net, split, on_block=on_block, note=note)

    def evaluate(state: TrainState, epoch: int) -> dict[str, float]:
        if epoch % experiment.evaluation.every_epochs and epoch != experiment.epochs:
            return {}
        points = {"": evaluated(objective, state), **evaluated_beside(state)}
        return {
            "_".join(filter(None, (experiment.monitor, name, average))): float(correct(variables, attack).mean())
            for average, variables in points.items()
            for name, attack in attacks.items()
        }

    return evaluate


class Evaluator:
    """Evaluates weights on given examples at high precision; a call returns which are classified correctly."""

    def __init__(
        self,
        experiment: Experiment,
        net: Model,
        split: Split,
        *,
        on_block: Callable[[], None] = lambda: None,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.experiment, self.net, self.note = experiment, net, note
        self._told: set[str] = set()
        self.images, self.labels = placed(split.images), jnp.asarray(split.labels)
        precision = experiment.evaluation.precision
        self.precision = None if precision == "default" else precision
        self.options: dict[str, Any] = {
            "key": named_key(jax.random.key(experiment.seed), "evaluate"),
            "batch_size": experiment.evaluation.batch_size,
            "mesh": data_mesh(jax.device_count()),  # all devices: blocks are padded to a multiple of them
            "on_block": on_block,
            "on_finding": self._tell,
        }

    def __call__(self, variables: Variables, attack: Attack | EvaluationAttack | None) -> np.ndarray:
        """Which examples the weights classify correctly under an attack, `[N]` bool."""
        if isinstance(attack, MinimumNormAttack):
            return self.minimum_norms(variables, attack).robust_at(attack.eps)
        logits_fn = make_logits_fn(self.net, variables)
        if isinstance(attack, AutoAttack | AutoAttackUnion):
            seen = seen_by_attacks(self.experiment, self.net, variables)
            result = attack.run(logits_fn, self.images, self.labels, attack_logits_fn=seen)
            for finding in result.findings:
                self._tell(finding)
            return result.robust
        with jax.default_matmul_precision(self.precision):
            return correct_under_attack(logits_fn, self.images, self.labels, attack, **self.options)

    def judge(self, variables: Variables, attack: Attack | Bound | None) -> Judged:
        """The classes that the weights predict under an attack within a radius, and its first images."""
        logits_fn = make_logits_fn(self.net, variables)
        with jax.default_matmul_precision(self.precision):
            return judge_under_attack(logits_fn, self.images, self.labels, attack, **self.options)

    def transferred(self, variables: Variables, attack: Bound, source: LogitsFn) -> np.ndarray:
        """Which examples the weights classify correctly under a transfer attack from another network, `[N]` bool."""
        logits_fn = make_logits_fn(self.net, variables)
        with jax.default_matmul_precision(self.precision):
            return correct_under_attack(logits_fn, self.images, self.labels, attack, source=source, **self.options)

    def minimum_norms(self, variables: Variables, attack: MinimumNormAttack) -> MinimumNorms:
        """The distances to the nearest misclassified images that an attack finds."""
        logits_fn = make_logits_fn(self.net, variables)
        with jax.default_matmul_precision(self.precision):
            return minimum_norms(logits_fn, self.images, self.labels, attack.attack, **self.options)

    def _tell(self, finding: Finding) -> None:
        """Say it once, however often the network is evaluated."""
        if is_first() and finding.message not in self._told:
            self._told.add(finding.message)
            self.note(finding.message)


def evaluator(
    experiment: Experiment,
    net: Model,
    split: Split,
    *,
    on_block: Callable[[], None] = lambda: None,
    note: Callable[[str], None] = lambda text: None,
) -> Evaluator:
    """An `Evaluator` that says which examples of `split` given weights classify under an attack.

    Args:
      experiment: says how to evaluate.
      net: the network, with float32 activations.
      split: images, uint8 or floats in [0, 1], and labels.
      on_block: called before each block of images.
      note: is called with warnings about doubtful results.
    """
    return Evaluator(experiment, net, split, on_block=on_block, note=note)
