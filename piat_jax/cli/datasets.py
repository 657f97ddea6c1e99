"""From a config to its training data: what is loaded, held out, augmented, mixed in, and where it lives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from piat_jax.cli.config import Config
from piat_jax.core.checks import InputError, check_at_least, check_choice, check_range
from piat_jax.core.sharding import data_mesh
from piat_jax.data import Dataset, Split, check_name, hold_out, load
from piat_jax.data.augment import PADDING_MODES, POLICIES, check_augmentation
from piat_jax.data.batching import check_batch_size
from piat_jax.data.npz import read_examples
from piat_jax.training import Examples
from piat_jax.training.streaming import Stream, check_extra

AUGMENTATION = ("crop_padding", "padding_mode", "flip", "policy", "cutout")


def problems(config: Config, attempt: Callable[..., None]) -> None:
    """Hand every check of the group `dataset` to `attempt`; no file is touched."""
    fields = config.dataset
    attempt(check_name, fields.name)
    attempt(check_augmentation, fields.name, fields.flip)
    for name in ("crop_padding", "cutout", "train_examples", "test_examples", "validation_examples"):
        attempt(check_at_least, f"dataset.{name}", fields[name], 0)
    attempt(check_choice, "dataset.padding_mode", fields.padding_mode, PADDING_MODES)
    attempt(check_choice, "dataset.policy", fields.policy, POLICIES)
    attempt(check_range, "dataset.extra_fraction", fields.extra_fraction, 0, 1, open_low=True)


def augmentation(config: Config) -> dict[str, Any]:
    """What `augment` takes."""
    return {name: config.dataset[name] for name in AUGMENTATION}


def extra_per_batch(config: Config) -> int:
    """How many examples of a batch are generated ones."""
    return round(config.dataset.extra_fraction * config.batch_size) if config.dataset.extra else 0


def dataset(config: Config) -> tuple[Dataset, Split, Split]:
    """The data, what is trained on, and what is evaluated during training (held out of training, or the test set)."""
    fields = config.dataset
    data = load(
        fields.name,
        data_dir=fields.data_dir,
        train_examples=fields.train_examples,
        test_examples=fields.test_examples,
    )
    check_augmentation(data.name, fields.flip)  # what lies under a path may have a name
    train, monitor = data.train, data.test
    if fields.validation_examples:
        train, monitor = hold_out(train, fields.validation_examples)
    check_batch_size(config.batch_size, len(train.labels))
    height, width, channels = train.images.shape[1:]
    check_range("dataset.crop_padding", fields.crop_padding, 0, min(height, width) - 1)
    check_range("dataset.cutout", fields.cutout, 0, min(height, width))
    if config.model.mean and len(config.model.mean) != channels:
        raise InputError(f"model.mean has {len(config.model.mean)} entries for images of {channels} channels")
    return data, train, monitor


def place(config: Config, train: Split, num_classes: int) -> Examples | Stream:
    """The training examples, and generated ones beside them, on the device or to be streamed to it."""
    share, extra = extra_per_batch(config), None
    if config.dataset.extra:
        extra = read_examples(Path(config.dataset.extra).expanduser())
        check_extra(train.images, extra, config.batch_size, share)
        highest = int(extra.labels.max(initial=0))
        if highest >= num_classes:
            raise InputError(f"dataset.extra={config.dataset.extra!r} has label {highest} for {num_classes} classes")
    if config.dataset.stream:
        options = {"batch_size": config.batch_size, "mesh": data_mesh(config.batch_size)}
        return Stream(train, extra=extra, extra_per_batch=share, **options)
    examples = Examples(jnp.asarray(train.images), jnp.asarray(train.labels))
    return (
        examples if extra is None else examples._replace(extra=(jnp.asarray(extra.images), jnp.asarray(extra.labels)))
    )
