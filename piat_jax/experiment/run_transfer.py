"""Evaluate a run's checkpoints on adversarial images that were crafted on another run's network."""

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from piat_jax.checkpoint import Checkpoints
from piat_jax.core.bound import Bound
from piat_jax.core.checks import InputError
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.multihost import is_first, on_first
from piat_jax.core.types import LogitsFn
from piat_jax.experiment.data import load_test
from piat_jax.experiment.evaluation import evaluation_attack, evaluator, settings_of
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.run import DATA, ON_DISK, Run, checkpoints_of, read_json
from piat_jax.experiment.run_evaluation import EvaluationListener, comparable, dropped, is_at, keep_found, tell

TRANSFER = "transfer"


class Source(NamedTuple):
    """The checkpoint of a run on which adversarial images are crafted."""

    run: Run
    checkpoint: str  # "best" or "final"

    def __str__(self) -> str:
        return str(self.run.folder / Checkpoints.FOLDER / ON_DISK[self.checkpoint])


def source_of(text: str) -> Source:
    """The source in a run's folder (its best checkpoint) or in a checkpoint's folder.

    Raises:
      InputError: the run or the checkpoint does not exist.

    >>> source_of("runs/absent")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: from='runs/absent' holds no run; give the folder of a run or of its checkpoint
    """
    path, checkpoint = Path(text), "best"
    if path.parent.name == Checkpoints.FOLDER:
        names = {kept: name for name, kept in ON_DISK.items()}
        if path.name not in names:
            raise InputError(f"from={text!r} is not a checkpoint; there are {', '.join(names)}")
        path, checkpoint = path.parent.parent, names[path.name]
    run = Run(path)
    if not run.exists:
        raise InputError(f"from={text!r} holds no run; give the folder of a run or of its checkpoint")
    return Source(run, checkpoint)


def evaluate_transfer(
    experiment: Experiment,
    run: Run,
    source: Source,
    *,
    checkpoints: Sequence[str] = (),
    num_examples: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    listener: EvaluationListener | None = None,
) -> dict[str, Any]:
    """Evaluate a run's checkpoints under transfer attacks: the final attacks craft images on another run's network.

    The results are in evaluation.json, separate from other accuracies: in each checkpoint's "transfer", under the
    source checkpoint's name.

    Args:
      experiment: says how to attack and to judge; mostly `run.experiment()`.
      run: the run that is judged.
      source: the checkpoint that is attacked, including its normalisation.
      checkpoints, num_examples, resume, overwrite, listener: as for `run_evaluation.evaluate`.

    Returns:
      The content of evaluation.json.

    Raises:
      InputError: the source has other data, an attack makes no images, or earlier results have other examples or
        settings.
    """
    listener = listener or EvaluationListener()
    fields = experiment.dataset
    attacks = {name: _attack(experiment, name) for name in experiment.evaluation.final_attacks}
    theirs = source.run.experiment()
    if theirs.dataset.name != fields.name:
        raise InputError(
            f"from={str(source)!r} was trained on {theirs.dataset.name}, and {run.folder} on {fields.name}; give a run "
            "on the same data"
        )
    data = load_test(experiment, test_examples=num_examples, note=listener.note)
    shape = data.test.images.shape[1:]
    _check_shape(source, shape)
    attacked, at_source = _network(theirs, source, data.num_classes, shape)
    net = experiment.build_model(data.num_classes, dtype="float32")
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)))
    correct = evaluator(experiment, net, data.test, note=listener.note)
    result = {
        "num_examples": len(data.test.labels),
        "aa_examples": len(data.test.labels),
        "settings": settings_of(experiment),
        "class_names": list(data.class_names),
        "checkpoints": {},
    }
    result["checkpoints"] = comparable(run, result, by_autoattack=False, overwrite=overwrite)
    for name in checkpoints or checkpoints_of(run.experiment()):
        variables, info = run.load_evaluated(name, like)
        at = {"epoch": info["epoch"], "steps": (info.get("position") or {}).get("steps", 0)}
        point = result["checkpoints"].get(name, {})
        if not is_at(point, at):
            if point:  # the run has been trained further
                if point.get("accuracy") and is_first():
                    listener.note(dropped(run, name, point, at))
                on_first(functools.partial(run.drop_robustness, name))
            point = {**at, "accuracy": {}}
        result["checkpoints"][name] = point
        kept = point.setdefault(TRANSFER, {})
        if not is_at(kept.get(str(source)), at_source):
            kept[str(source)] = {**at_source, "accuracy": {}}
        found = kept[str(source)]
        for text, attack in attacks.items():
            seconds = None
            if not (resume and text in found["accuracy"]):
                began = time.perf_counter()
                flags = correct.transferred(variables, attack, attacked)
                keep_found(found, text, flags, data.test.labels, data.class_names)
                seconds = time.perf_counter() - began
            tell(listener, run, name, {**found, "epoch": at["epoch"]}, text, seconds, label=f"{text} from {source}")
            if is_first():
                run.write_evaluation(result)
    return result


def transferable(experiment: Experiment) -> Experiment:
    """The experiment without final attacks that cannot transfer, for attacks that come from the default.

    Raises:
      InputError: no attack remains.
    """
    names = []
    for name in experiment.evaluation.final_attacks:
        try:
            _attack(experiment, name)
        except InputError:
            continue
        names.append(name)
    if not names:
        raise InputError("evaluation.final_attacks has no attack that can transfer; give --attacks, such as pgd20")
    return experiment.with_fields({"evaluation.final_attacks": tuple(names)})


def _attack(experiment: Experiment, name: str) -> Bound:
    attack = evaluation_attack(experiment, name)
    if not isinstance(attack, Bound):
        raise InputError(f"attack {name!r} cannot transfer; give an attack such as pgd20, cw20, mt20 or mi_fgsm10")
    return attack


def _check_shape(source: Source, shape: tuple[int, ...]) -> None:
    """Raise InputError if the source was trained on images of another shape."""
    path = source.run.folder / DATA
    theirs = (read_json(path) if path.exists() else {}).get("train", {}).get("image_shape", shape)
    if list(theirs) != list(shape):
        raise InputError(f"from={str(source)!r} was trained on images of shape {tuple(theirs)}, and these have {shape}")


def _network(
    theirs: Experiment, source: Source, num_classes: int, shape: tuple[int, ...]
) -> tuple[LogitsFn, dict[str, int]]:
    """Load the source's network, and the epoch and step of its weights."""
    net = theirs.build_model(num_classes, dtype="float32")
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)))
    variables, info = source.run.load_evaluated(source.checkpoint, like)
    at = {"epoch": info["epoch"], "steps": (info.get("position") or {}).get("steps", 0)}
    return make_logits_fn(net, variables), at
