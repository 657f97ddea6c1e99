"""The data of an experiment: what is loaded, held out, mixed in, and where it lives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError, check_at_least, check_choice, check_range
from piat_jax.data import Dataset, Split, check_name, hold_out, load
from piat_jax.data.augment import PADDING_MODES, POLICIES, check_augmentation
from piat_jax.data.batching import check_batch_size
from piat_jax.data.npz import read_examples
from piat_jax.evaluation.journal import digest
from piat_jax.experiment.experiment import Experiment
from piat_jax.training import Examples
from piat_jax.training.streaming import Stream, check_extra

FINGERPRINT_IMAGES = 1000
"""How many images, at equal distances, tell data from other data."""


def check_data_fields(experiment: Experiment, attempt: Callable[..., None]) -> None:
    """Hand every check of the group `dataset` to `attempt`; no file is touched."""
    fields = experiment.dataset
    attempt(check_name, fields.name)
    attempt(check_augmentation, fields.name, fields.flip)
    for name in ("crop_padding", "cutout", "train_examples", "test_examples", "validation_examples"):
        attempt(check_at_least, f"dataset.{name}", getattr(fields, name), 0)
    attempt(check_choice, "dataset.padding_mode", fields.padding_mode, PADDING_MODES)
    attempt(check_choice, "dataset.policy", fields.policy, POLICIES)
    attempt(check_range, "dataset.extra_fraction", fields.extra_fraction, 0, 1, open_low=True)


def load_data(experiment: Experiment, *, hold_out_how: str = "by class") -> tuple[Dataset, Split, Split]:
    """The data, what is trained on, and what is evaluated during training (held out of training, or the test set)."""
    fields = experiment.dataset
    data = load(
        fields.name,
        data_dir=fields.data_dir,
        train_examples=fields.train_examples,
        test_examples=fields.test_examples,
    )
    check_augmentation(data.name, fields.flip)  # what lies under a path may have a name
    train, monitor = data.train, data.test
    if fields.validation_examples:
        train, monitor = hold_out(train, fields.validation_examples, how=hold_out_how)
    check_batch_size(experiment.batch_size, len(train.labels))
    height, width, channels = train.images.shape[1:]
    check_range("dataset.crop_padding", fields.crop_padding, 0, min(height, width) - 1)
    check_range("dataset.cutout", fields.cutout, 0, min(height, width))
    if experiment.model.mean and len(experiment.model.mean) != channels:
        raise InputError(f"model.mean has {len(experiment.model.mean)} entries for images of {channels} channels")
    return data, train, monitor


def describe_data(train: Split, monitor: Split, extra: Split | None, hold_out_how: str) -> dict[str, Any]:
    """What tells data from other data, as a run keeps it: counts, and digests of the labels and of some images.

    Args:
      train: the training examples.
      monitor: those evaluated during training.
      extra: those mixed in.
      hold_out_how: of `hold_out`; it says nothing where nothing is held out.
    """
    splits = {"train": train, "monitor": monitor} | ({"extra": extra} if extra else {})
    return {"hold_out": hold_out_how, **{name: _fingerprint(split) for name, split in splits.items()}}


def _fingerprint(split: Split) -> dict[str, Any]:
    some = np.unique(np.linspace(0, len(split.labels) - 1, FINGERPRINT_IMAGES).astype(int))
    images = np.asarray(split.images[some])
    return {
        "examples": len(split.labels),
        "image_shape": list(images.shape[1:]),
        "labels": digest(np.asarray(split.labels, np.int32)),
        "images": digest(images),
    }


def load_extra(experiment: Experiment, train: Split, num_classes: int) -> Split | None:
    """The generated examples to mix in, if there are some."""
    path = experiment.dataset.extra
    if not path:
        return None
    found = read_examples(Path(path))
    check_extra(train.images, found, experiment.batch_size, experiment.extra_per_batch)
    highest = int(found.labels.max(initial=0))
    if highest >= num_classes:
        raise InputError(f"dataset.extra={path!r} has label {highest} for {num_classes} classes")
    return found


def place_data(experiment: Experiment, train: Split, extra: Split | None) -> Examples | Stream:
    """The training examples, and generated ones beside them, on the device or to be streamed to it."""
    if experiment.dataset.stream:
        replays = experiment.objective.get("replays", 1)
        options = {"batch_size": experiment.batch_size, "mesh": experiment.build_mesh(), "replays": replays}
        return Stream(train, extra=extra, extra_per_batch=experiment.extra_per_batch, **options)
    examples = Examples(jnp.asarray(train.images), jnp.asarray(train.labels))
    return (
        examples if extra is None else examples._replace(extra=(jnp.asarray(extra.images), jnp.asarray(extra.labels)))
    )
