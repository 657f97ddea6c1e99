"""Evaluate the best and the final checkpoint of a run; the results are kept in its folder."""

import copy
import functools
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.analysis.predictions import Predictions, make_predictions
from piat_jax.analysis.runs import EVALUATION
from piat_jax.attacks.ensemble import MEMBERS
from piat_jax.core.checks import InputError
from piat_jax.core.files import write_arrays, write_file, write_json
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.multihost import any_of_all, is_first, on_first
from piat_jax.data import first
from piat_jax.evaluation import (
    AutoAttack,
    AutoAttackUnion,
    Robustness,
    UnionRobustness,
    class_accuracies,
    find_worst_class,
)
from piat_jax.evaluation.journal import Journal
from piat_jax.evaluation.minimum_norm import MinimumNormAttack, MinimumNorms
from piat_jax.evaluation.robustness import JSON
from piat_jax.evaluation.union import UNION_EPS
from piat_jax.experiment.data import load_test
from piat_jax.experiment.evaluation import (
    UNION_ATTACK,
    UNION_PARTS,
    evaluation_attack,
    evaluator,
    is_minimum_norm,
    seen_by_attacks,
    settings_of,
)
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.model_info import FILE as MODEL_INFO
from piat_jax.experiment.model_info import is_for_robustbench, is_whole, model_info, place_for
from piat_jax.experiment.run import Run, checkpoints_of, parse_checkpoint

KINDS = ("accuracy", "by_class", "minimum_norm")
"""The entries of a checkpoint in evaluation.json that are stored by attack."""


class EvaluationListener:
    """Receives an evaluation's progress; these methods do nothing."""

    def note(self, text: str) -> None:
        """Called with a note, such as a setting that may be unintended."""

    def attacking(self, run: Run, checkpoint: str) -> AbstractContextManager[Any]:
        """Called when AutoAttack begins; returns a context manager whose value is called after each block."""
        return nullcontext(lambda progress: None)

    def attacked(self, found: Robustness | UnionRobustness) -> None:
        """Called when AutoAttack is done, or when its results under several norms are combined."""

    def measured(self, attack: str, found: MinimumNorms) -> None:
        """Called when a minimum-norm attack is done."""

    def accuracy(
        self,
        run: Run,
        checkpoint: str,
        epoch: int,
        attack: str,
        value: float,
        seconds: float | None,
        worst: tuple[str, float] | None = None,
    ) -> None:
        """Called with a checkpoint's accuracy under an attack, in [0, 1]; without `seconds` if it was known before.

        `worst` is the class with the lowest accuracy and that accuracy; None if an earlier version did not keep it.
        """


def evaluate(
    experiment: Experiment,
    run: Run,
    *,
    checkpoints: Sequence[str] = (),
    num_examples: int = 0,
    aa_examples: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    listener: EvaluationListener | None = None,
) -> dict[str, Any]:
    """Evaluate checkpoints of a run under `experiment.evaluation.final_attacks`, and write the results.

    `resume` keeps earlier accuracies of the same weights on the same examples.
    If the best checkpoint is also the final one, it is evaluated once.

    Args:
      experiment: says how to evaluate; mostly `run.experiment()`.
      run: the run.
      checkpoints: from "best", "final" and, for a further average, "final:swa"; () = all of `checkpoints_of`.
      num_examples: the first n test images; 0 = all.
      aa_examples: for AutoAttack and its members, the first n of these; 0 = all.
      resume: keep earlier results, and continue attacks that were stopped.
      overwrite: evaluate again and replace the results.
      listener: receives the progress.

    Returns:
      The content of evaluation.json: accuracies in [0, 1] by checkpoint and attack, class accuracies, and the settings
      that they depend on.

    Raises:
      InputError: the folder has accuracies on other examples or with other settings, and `overwrite` is False.
    """
    listener = listener or EvaluationListener()
    fields, attacks = experiment.dataset, experiment.evaluation.final_attacks
    data = load_test(experiment, test_examples=num_examples, note=listener.note)
    net = experiment.build_model(data.num_classes, dtype="float32")
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *data.test.images.shape[1:])))
    correct = evaluator(experiment, net, data.test, note=listener.note)
    by_autoattack = any(map(is_autoattack, attacks))
    for_autoattack = first(
        "aa_examples", aa_examples if by_autoattack else 0, fields.name, data.test, as_listed=bool(fields.test_list)
    )
    limited = bool(num_examples or fields.test_examples or len(for_autoattack.labels) < len(data.test.labels))
    whole = is_whole(data.name, for_autoattack, limited, listed=bool(fields.test_list))
    result = {
        "num_examples": len(data.test.labels),
        "aa_examples": len(for_autoattack.labels),
        "settings": settings_of(experiment),
        "class_names": list(data.class_names),
        "checkpoints": {},
    }
    before = comparable(run, result, by_autoattack=by_autoattack, overwrite=overwrite)
    valid = dict(before) if resume else {}

    def keep() -> None:
        if is_first():
            run.write_evaluation(result)

    for name in checkpoints or checkpoints_of(run.experiment()):
        variables, info = run.load_evaluated(name, like)
        # A run that was stopped within an epoch has taken this many further steps.
        at = {"epoch": info["epoch"], "steps": (info.get("position") or {}).get("steps", 0)}
        point: dict[str, Any] = {**at, "accuracy": {}}
        if is_at(before.get(name), at):
            point = {**copy.deepcopy(before[name]), **at}
        elif name in before:  # the run has been trained further
            if before[name]["accuracy"] and is_first():
                listener.note(dropped(run, name, before[name], at))
            on_first(functools.partial(run.drop_robustness, name))
        twin = next((other for other, found in valid.items() if _same_weights(other, name) and is_at(found, at)), "")
        valid[name] = point
        result["checkpoints"] = {**before, **result["checkpoints"], name: point}
        keep()  # records whose weights the attacks' folders belong to
        # The union combines its parts' results, so these must exist.
        needed = UNION_PARTS if UNION_ATTACK in attacks and not (resume and UNION_ATTACK in point["accuracy"]) else ()
        robust: dict[str, Robustness] = {}
        for text in with_parts(attacks):
            if resume and text in point["accuracy"] and text not in needed:
                tell(listener, run, name, point, text, None)
                continue
            began = time.perf_counter()
            attack = evaluation_attack(experiment, text)
            if twin and text in valid[twin]["accuracy"] and _take_over(run, twin, name, text):
                _copy_found(valid[twin], point, text)
            elif isinstance(attack, AutoAttackUnion):
                parts = {part: robust.get(part) or Robustness.load(run.robustness(name, part)) for part in UNION_PARTS}
                union = UnionRobustness({part.removeprefix("aa-"): found for part, found in parts.items()})
                listener.attacked(union)
                keep_found(point, text, union.robust, for_autoattack.labels, data.class_names)
            elif isinstance(attack, MinimumNormAttack):
                norms = correct.minimum_norms(variables, attack)
                listener.measured(text, norms)
                on_first(functools.partial(_write_norms, run.robustness(name, text), norms))
                keep_found(point, text, norms.robust_at(attack.eps), data.test.labels, data.class_names)
                point.setdefault("minimum_norm", {})[text] = norms.summary()
            elif isinstance(attack, AutoAttack):
                where = run.robustness(name, text)
                if not resume:
                    on_first(functools.partial(shutil.rmtree, where, ignore_errors=True))
                seen = seen_by_attacks(experiment, net, variables)
                with listener.attacking(run, name) as report:
                    found = attack.run(
                        make_logits_fn(net, variables),
                        *for_autoattack,
                        folder=where,
                        report=report,
                        attack_logits_fn=seen,
                    )
                listener.attacked(found)
                robust[text] = found
                labels = np.asarray(for_autoattack.labels)
                kept = make_predictions(
                    labels,
                    found.predictions,
                    seconds=sum(found.seconds.values()),
                    shown=(for_autoattack.images, found.images),
                    clean=np.where(found.clean, labels, -1),
                    correct=found.robust,
                )
                on_first(functools.partial(kept.save, run.predictions(name, text)))
                if text == "aa" and is_for_robustbench(found, whole=whole):
                    info = model_info(experiment, data.name, found)
                    on_first(functools.partial(write_json, where / MODEL_INFO, info))
                    if is_first():
                        listener.note(f"{where / MODEL_INFO} is for RobustBench's {place_for(info, found)}")
                keep_found(point, text, found.robust, for_autoattack.labels, data.class_names)
            else:
                judged, labels = correct.judge(variables, attack), np.asarray(data.test.labels)
                kept = make_predictions(
                    labels,
                    judged.predicted,
                    seconds=time.perf_counter() - began,
                    clean=_clean_predictions(run, name, labels),
                    correct=judged.correct,
                    shown=None if attack is None else (data.test.images, judged.images),
                )
                on_first(functools.partial(kept.save, run.predictions(name, text)))
                keep_found(point, text, judged.correct, data.test.labels, data.class_names)
            tell(listener, run, name, point, text, time.perf_counter() - began)
            keep()  # the next attack may take hours
    return result


def check_not_evaluated(experiment: Experiment, run: Run, checkpoints: Sequence[str]) -> None:
    """Raise InputError if AutoAttack or a member of it has begun on one of the checkpoints; writes nothing."""
    for name in checkpoints or checkpoints_of(run.experiment()):
        for attack in filter(is_autoattack, with_parts(experiment.evaluation.final_attacks)):
            path = run.robustness(name, attack)
            if Journal.read_settings(path) is None:
                continue
            if (path / JSON).exists():
                how, fix = "a finished evaluation", "keep it, or --overwrite to evaluate again"
            else:
                how, fix = "an evaluation that was stopped", "continue it, or --overwrite to start again"
            raise InputError(f"{path} holds {how}; give --resume to {fix}")


def is_evaluated(experiment: Experiment, run: Run, *, aa_examples: int = 0) -> bool:
    """Whether all checkpoints of a finished run have been evaluated as `experiment.evaluation` says."""
    found, attacks = run.evaluation(), experiment.evaluation.final_attacks
    if not found:
        return False
    points = [found["checkpoints"].get(name, {"epoch": -1, "accuracy": {}}) for name in checkpoints_of(experiment)]
    return (
        found["settings"] == settings_of(experiment)
        and points[-1]["epoch"] == experiment.epochs
        and all(attack in point["accuracy"] for point in points for attack in attacks)
        and (not any(map(is_autoattack, attacks)) or found.get("aa_examples") == (aa_examples or found["num_examples"]))
    )


def with_parts(attacks: Sequence[str]) -> list[str]:
    """Attacks, with the union's parts inserted before it; each attack once.

    >>> with_parts(["clean", "aa-l2", "aa-union"])
    ['clean', 'aa-l2', 'aa-linf', 'aa-l1', 'aa-union']
    """
    return list(dict.fromkeys(each for name in attacks for each in _parts_of(name)))


def _parts_of(name: str) -> tuple[str, ...]:
    return (*UNION_PARTS, name) if name == UNION_ATTACK else (name,)


def is_autoattack(name: str) -> bool:
    """Whether this is AutoAttack or a member of it, which has a separate number of examples and a folder."""
    return name.startswith("aa") or name.rstrip("0123456789") in MEMBERS


def tell(
    listener: EvaluationListener,
    run: Run,
    name: str,
    point: Mapping[str, Any],
    attack: str,
    seconds: float | None,
    *,
    label: str = "",
) -> None:
    """Report a checkpoint's result under an attack to the listener."""
    worst = point.get("by_class", {}).get(attack)
    told = (worst["worst_class"], worst["worst"]) if worst else None
    listener.accuracy(run, name, point["epoch"], label or attack, point["accuracy"][attack], seconds, told)


def keep_found(
    point: dict[str, Any], attack: str, correct: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> None:
    """Store the accuracy under an attack and the class accuracies (six decimals; null for a class without examples)."""
    point["accuracy"][attack] = float(correct.mean())
    by_class = class_accuracies(correct, labels, len(names))
    worst = find_worst_class(by_class)
    point.setdefault("by_class", {})[attack] = {
        "worst_class": names[worst.label],
        "worst": worst.accuracy,
        "classes": [None if np.isnan(value) else round(value, 6) for value in by_class.tolist()],
    }


def _clean_predictions(run: Run, name: str, labels: np.ndarray) -> np.ndarray | None:
    """A checkpoint's predicted classes for the clean images of these labels; None if they were not kept."""
    path = run.predictions(name, "clean")
    try:
        found = Predictions.load(path) if path.exists() else None
    except InputError:
        return None
    known = found is not None and np.array_equal(found.labels[: len(labels)], labels)
    return found.predicted[: len(labels)] if found and known else None


def _write_norms(folder: Path, found: MinimumNorms) -> None:
    """Write the norm of each example, and the curve."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"labels": found.labels, "clean": found.clean, "distances": found.distances}
    write_arrays(folder / "norms.npz", arrays)
    write_file(folder / "curve.csv", lambda file: file.write(found.to_csv().encode()))


def _copy_found(source: Mapping[str, Any], target: dict[str, Any], attack: str) -> None:
    """Copy one checkpoint's results under an attack to another with the same weights."""
    for kind in KINDS:
        if attack in source.get(kind, {}):
            target.setdefault(kind, {})[attack] = copy.deepcopy(source[kind][attack])


def dropped(run: Run, name: str, point: Mapping[str, Any], at: Mapping[str, int]) -> str:
    """The note on a checkpoint whose earlier results do not count any more."""
    return (
        f"{run.folder}: {name} was trained on since its last evaluation (epoch {point['epoch']}, now {at['epoch']}); "
        f"its results from then are dropped: {', '.join(point['accuracy'])}"
    )


def is_at(point: Mapping[str, Any] | None, at: Mapping[str, int]) -> bool:
    """Whether accuracies belong to the weights at a position; earlier versions kept no steps, which means 0."""
    return point is not None and all(point.get(name, 0) == number for name, number in at.items())


def _same_weights(one: str, other: str) -> bool:
    """Whether two checkpoints have the same weights if their epochs are equal."""
    return one != other and parse_checkpoint(one)[1] == parse_checkpoint(other)[1]


def _take_over(run: Run, name: str, other: str, attack: str) -> bool:
    """Copy one checkpoint's evaluation files to another with the same weights; False if files were missing."""
    if any_of_all(is_first() and run.predictions(name, attack).exists()):
        on_first(functools.partial(_copy_file, *(run.predictions(each, attack) for each in (name, other))))
    if not is_autoattack(attack) and not is_minimum_norm(attack):
        return True
    source, target = (run.robustness(each, attack) for each in (name, other))
    file = JSON if is_autoattack(attack) else "norms.npz"
    if not any_of_all(is_first() and (source / file).exists()):  # the writing process knows
        return False
    on_first(functools.partial(_copy_folder, source, target))
    return True


def _copy_file(source: Path, target: Path) -> None:
    write_file(target, lambda file: file.write(source.read_bytes()))


def _copy_folder(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)  # from an evaluation that was stopped
    shutil.copytree(source, target)


def comparable(run: Run, result: dict[str, Any], *, by_autoattack: bool, overwrite: bool) -> dict[str, Any]:
    """Earlier results on the same examples with the same settings, by checkpoint.

    If AutoAttack is not requested, `result` keeps the number of examples that it had.

    Raises:
      InputError: there are results of another evaluation, and `overwrite` is False.
    """
    before = run.evaluation()
    if not before:
        return {}
    checkpoints = before["checkpoints"]
    if any(is_autoattack(name) for point in checkpoints.values() for name in point["accuracy"]):
        before.setdefault("aa_examples", before["num_examples"])
        if not by_autoattack:
            result["aa_examples"] = before["aa_examples"]
    else:
        before["aa_examples"] = result["aa_examples"]
    unless_told = {"attack_precision": "same", "union_eps": list(UNION_EPS), "test_list": ""}
    there, here = ({**unless_told, **found, **found["settings"]} for found in (before, result))
    compared = dict.fromkeys(("num_examples", "aa_examples", *unless_told, *result["settings"]))
    changed = [name for name in compared if there.get(name) != here[name]]
    if changed and not overwrite:
        told = "; ".join(f"{name} {there.get(name)} there, {here[name]} here" for name in changed)
        path = run.folder / EVALUATION
        raise InputError(f"{path} holds another evaluation ({told}); give --overwrite to replace it")
    return {} if changed else checkpoints
