"""Evaluate a run's checkpoints under common corruptions; the results are kept in its folder."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from piat_jax.core.checks import InputError
from piat_jax.core.files import write_file, write_json
from piat_jax.core.multihost import on_first
from piat_jax.core.types import Variables
from piat_jax.data.corruptions import CORRUPTIONS, SEVERITIES, Corruptions, open_corruptions
from piat_jax.data.types import Split
from piat_jax.evaluation.corruptions import CorruptionAccuracy
from piat_jax.experiment.data import load_test
from piat_jax.experiment.evaluation import Evaluator, settings_of
from piat_jax.experiment.experiment import Experiment
from piat_jax.experiment.run import Run, checkpoints_of, read_json

CHUNK = 2000
"""Number of images that are decoded and on the device at the same time."""


class CorruptionListener:
    """Receives the evaluation's progress; these methods do nothing."""

    def note(self, text: str) -> None:
        """Called with a note, such as a setting that may be unintended."""

    def corrupted(self, run: Run, checkpoint: str, epoch: int, name: str, values: Sequence[float]) -> None:
        """Called with a checkpoint's accuracies under a corruption at severities 1 to 5."""

    def all_corrupted(self, run: Run, checkpoint: str, found: CorruptionAccuracy) -> None:
        """Called when a checkpoint is done."""


def evaluate_corruptions(
    experiment: Experiment,
    run: Run,
    folder: str | Path,
    *,
    checkpoints: Sequence[str] = (),
    num_examples: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    listener: CorruptionListener | None = None,
) -> dict[str, CorruptionAccuracy]:
    """Evaluate a run's checkpoints on corrupted test images, and write the results as JSON and Markdown.

    Args:
      experiment: says how to evaluate; mostly `run.experiment()`.
      run: the run.
      folder: with CIFAR-10-C, CIFAR-100-C, Tiny-ImageNet-C or ImageNet-C, see `data.corruptions.open_corruptions`.
      checkpoints: from "best", "final" and, for a further average, "final:swa"; () = all of `checkpoints_of`.
      num_examples: the first n images at each severity; 0 = all.
      resume: keep results that have the same weights and number of images.
      overwrite: evaluate again and replace the results.
      listener: receives the progress.

    Returns:
      The results, by checkpoint.

    Raises:
      InputError: files are missing or wrong, or there are earlier results and neither `resume` nor `overwrite`.
    """
    listener = listener or CorruptionListener()
    data = load_test(experiment, test_examples=num_examples, note=listener.note)
    shape = data.test.images.shape[1:]
    corruptions = open_corruptions(folder, data.name, shape, data.num_classes)
    paths = {name: run.corruptions(name) for name in checkpoints or checkpoints_of(run.experiment())}
    if not resume and not overwrite:
        on_first(functools.partial(_check_free, paths.values()))
    net = experiment.build_model(data.num_classes, dtype="float32")
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)))
    accuracy_on = _on(experiment, net, listener.note)
    results: dict[str, CorruptionAccuracy] = {}
    for name, path in paths.items():
        variables, info = run.load_evaluated(name, like)
        at = {"epoch": info["epoch"], "steps": (info.get("position") or {}).get("steps", 0)}
        about = {**at, "examples": num_examples, "precision": experiment.evaluation.precision}
        about["test_list"] = settings_of(experiment).get("test_list")  # for the clean images
        known = _known(path, about) if resume else {}
        done: dict[str, tuple[float, ...]] = {}
        clean = known.get("clean")
        clean = accuracy_on(variables, data.test) if clean is None else clean
        count = known.get("num_examples", 0)
        for corruption in corruptions.names:
            values = known.get("accuracy", {}).get(corruption)
            if values is None:
                values = []
                for level in range(1, SEVERITIES + 1):
                    part = corruptions.split(corruption, level, num_examples)
                    count = len(part.labels)
                    values.append(accuracy_on(variables, part))
            done[corruption] = tuple(values)
            listener.corrupted(run, name, at["epoch"], corruption, values)
            results[name] = CorruptionAccuracy(clean, dict(done), data.num_classes, count)
            on_first(functools.partial(_write, path, about, corruptions, results[name]))
        listener.all_corrupted(run, name, results[name])
    return results


def _check_free(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise InputError(f"{path} holds an evaluation; give --resume to keep it, or --overwrite to replace it")


def _on(experiment: Experiment, net: Any, note: Callable[[str], None]) -> Callable[[Variables, Split], float]:
    """A function that computes the clean accuracy of weights on images that stay on the host."""

    def accuracy(variables: Variables, split: Split) -> float:
        right, count = 0, len(split.labels)
        for start in range(0, count, CHUNK):
            part = slice(start, start + CHUNK)
            evaluator = Evaluator(experiment, net, Split(split.images[part], split.labels[part]), note=note)
            right += int(evaluator(variables, None).sum())
        return right / count

    return accuracy


def _known(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Earlier results with the same settings; {} if the settings differ."""
    before = read_json(path) if path.exists() else {}
    return before if all(before.get(name) == value for name, value in about.items()) else {}


def _write(path: Path, about: Mapping[str, Any], corruptions: Corruptions, found: CorruptionAccuracy) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = all(name in found.accuracy for name in CORRUPTIONS)
    begun = {"clean": found.clean, "num_examples": found.num_examples, "accuracy": found.accuracy}
    numbers = found.summary() if whole else begun
    write_json(path, {**about, "folder": corruptions.where, **numbers})
    if whole:
        write_file(path.with_suffix(".md"), lambda file: file.write(found.to_markdown().encode()))
