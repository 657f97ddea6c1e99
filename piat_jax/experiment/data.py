"""An experiment's data: loading, holding out, mixing in generated examples, and placement on the device."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from piat_jax.core.checks import InputError, check_at_least, check_choice, check_range
from piat_jax.core.memory import device_memory, in_units
from piat_jax.data import Dataset, Split, check_name, hold_out, load, names
from piat_jax.data.augment import PADDING_MODES, POLICIES, check_augmentation
from piat_jax.data.autoaugment import MOST_MAGNITUDE
from piat_jax.data.batching import as_counts, check_batch_size
from piat_jax.data.npz import read_examples
from piat_jax.data.records import RecordImages
from piat_jax.data.records.images import decoded
from piat_jax.evaluation.journal import digest
from piat_jax.experiment.experiment import Experiment
from piat_jax.training import Examples
from piat_jax.training.encoded_stream import EncodedStream
from piat_jax.training.streaming import Stream, check_extra

FINGERPRINT_IMAGES = 1000
"""Number of evenly spaced images in the digest that distinguishes data sets."""
FINGERPRINT_FILES = 64
"""The same number for encoded images."""
MOST_INDICES = 2**31 - 1
"""Maximum number of indices in an epoch, in int32."""


def check_data_fields(experiment: Experiment, attempt: Callable[..., None]) -> None:
    """Pass every check of the group `dataset` to `attempt`; no file is read."""
    fields = experiment.dataset
    if fields.image_size:
        attempt(_check_place, fields.name, fields.data_dir)
    else:
        attempt(check_name, fields.name)
    attempt(experiment.build_decoding)
    attempt(check_augmentation, fields.name, fields.flip)
    for name in ("crop_padding", "cutout", "train_examples", "test_examples", "validation_examples"):
        attempt(check_at_least, f"dataset.{name}", getattr(fields, name), 0)
    attempt(check_choice, "dataset.padding_mode", fields.padding_mode, PADDING_MODES)
    attempt(check_choice, "dataset.policy", fields.policy, POLICIES)
    attempt(check_at_least, "dataset.policy_operations", fields.policy_operations, 1)
    attempt(check_range, "dataset.policy_magnitude", fields.policy_magnitude, 0, MOST_MAGNITUDE)
    attempt(check_range, "dataset.erasing", fields.erasing, 0, 1)
    attempt(check_range, "dataset.extra_fraction", fields.extra_fraction, 0, 1, open_low=True)
    attempt(check_range, "dataset.epoch_steps", fields.epoch_steps, 0, MOST_INDICES // max(experiment.batch_size, 1))
    attempt(check_range, "dataset.extra_smoothing", np.array(fields.extra_smoothing), 0, 1)
    attempt(_check_extra_files, experiment)


def _check_place(name: str, data_dir: str) -> None:
    if name in names() or ":" in name:
        raise InputError(
            f"dataset.name={name!r} is a data set of images of one size; with dataset.image_size give the path of a "
            "folder with encoded images, or a pattern of files"
        )
    if data_dir:
        raise InputError(f"dataset.name={name!r} is a path; leave out dataset.data_dir={data_dir!r}")


def _check_extra_files(experiment: Experiment) -> None:
    fields, count = experiment.dataset, len(experiment.extra_files)
    if not all(experiment.extra_files):
        raise InputError(f"dataset.extra={fields.extra!r} has an empty path; leave it out")
    if fields.extra_weights and len(fields.extra_weights) != count:
        raise InputError(
            f"dataset.extra_weights={fields.extra_weights} for {count} files in dataset.extra; give one for each, or ()"
        )
    if not all(0 < weight < float("inf") for weight in fields.extra_weights):
        raise InputError(
            f"dataset.extra_weights={fields.extra_weights} must be above 0; leave out the files that you do not want"
        )
    if len(fields.extra_smoothing) not in (1, count):
        raise InputError(
            f"dataset.extra_smoothing={fields.extra_smoothing} for {count} files in dataset.extra; give one share for "
            "all of them, or one for each"
        )


def load_data(experiment: Experiment, *, hold_out_how: str = "by class") -> tuple[Dataset, Split, Split]:
    """Load the data: the data set, the training split, and the split to evaluate on during training.

    The latter is held out of training, or is the test set. Encoded images stay encoded; `in_memory` decodes them.
    """
    fields = experiment.dataset
    data = load(
        fields.name,
        data_dir=fields.data_dir,
        train_examples=fields.train_examples,
        test_examples=fields.test_examples,
        decoding=experiment.build_decoding(),
        test_list=fields.test_list,
    )
    check_augmentation(data.name, fields.flip)  # data under a path may have a known name
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


def load_test(
    experiment: Experiment, *, test_examples: int = 0, note: Callable[[str], None] = lambda text: None
) -> Dataset:
    """Load the data to evaluate on: test images in memory, training images unchanged.

    Args:
      experiment: says which data.
      test_examples: use the first n; 0 = as in the experiment.
      note: is called with a line about images that were left out.
    """
    fields = experiment.dataset
    count, decoding = test_examples or fields.test_examples, experiment.build_decoding()
    data = load(
        fields.name,
        data_dir=fields.data_dir,
        test_examples=count,
        decoding=decoding,
        test_list=fields.test_list,
    )
    return dataclasses.replace(data, test=in_memory(data.test, note))


def in_memory(split: Split, note: Callable[[str], None]) -> Split:
    """A split with its images as an array: encoded images are decoded as for evaluation.

    Args:
      split: the examples.
      note: is called with a line about images that could not be decoded and are left out.
    """
    if not isinstance(split.images, RecordImages):
        return split
    found, bad = decoded(split.images)
    if bad:
        many = len(bad) > 1
        note(
            f"{len(bad)} image{'s' * many} to evaluate on {'are' if many else 'is'} left out: {bad[0]}{', ...' * many}"
        )
    return found


def describe_data(train: Split, monitor: Split, extra: Sequence[Split], hold_out_how: str) -> dict[str, Any]:
    """The data's description that a run stores to recognise it: counts, and digests of labels and some images.

    Args:
      train: the training examples.
      monitor: those evaluated during training.
      extra: those mixed in, file by file.
      hold_out_how: as for `hold_out`; without effect if nothing is held out.
    """
    mixed_in = {f"extra {number}" if number > 1 else "extra": split for number, split in enumerate(extra, 1)}
    splits = {"train": train, "monitor": monitor} | mixed_in
    return {"hold_out": hold_out_how, **{name: _fingerprint(split) for name, split in splits.items()}}


def _fingerprint(split: Split) -> dict[str, Any]:
    encoded = isinstance(split.images, RecordImages)
    count = FINGERPRINT_FILES if encoded else FINGERPRINT_IMAGES
    some = np.unique(np.linspace(0, len(split.labels) - 1, count).astype(int))
    if encoded:
        files = np.frombuffer(b"".join(map(split.images.read, some.tolist())), np.uint8)  # type: ignore[attr-defined]
        shape, images = split.images.shape[1:], files
    else:
        images = np.asarray(split.images[some])
        shape = images.shape[1:]
    return {
        "examples": len(split.labels),
        "image_shape": list(shape),
        "labels": digest(np.asarray(split.labels, np.int32)),
        "images": digest(images),
    }


def load_extra(experiment: Experiment, train: Split, num_classes: int) -> tuple[Split, ...]:
    """Load the generated examples to mix in, file by file."""
    files = experiment.extra_files
    found = tuple(read_examples(Path(path)) for path in files)
    for path, split in zip(files, found):
        check_extra(train.images, split, experiment.batch_size, experiment.extra_per_batch)
        highest = int(split.labels.max(initial=0))
        if highest >= num_classes:
            raise InputError(f"dataset.extra={path!r} has label {highest} for {num_classes} classes")
        if not len(split.labels):
            raise InputError(f"dataset.extra={path!r} has no examples; leave it out")
    if len(files) > 1:
        shares = as_counts(experiment.share_extra([len(split.labels) for split in found]))
        for path, share in zip(files, shares):
            if not share:
                raise InputError(
                    f"dataset.extra={path!r} would give none of the {experiment.extra_per_batch} generated examples of "
                    "a batch; leave it out, or give it more by dataset.extra_weights"
                )
    return found


def place_data(experiment: Experiment, train: Split, extra: Sequence[Split]) -> Examples | Stream:
    """Place the training examples and the generated ones on the device, or prepare to stream them to it.

    Raises:
      InputError: they do not fit on the device and are not streamed.
    """
    encoded = isinstance(train.images, RecordImages)
    if encoded or experiment.dataset.stream:
        options: dict[str, Any] = {
            "batch_size": experiment.batch_size,
            "extra": extra,
            "extra_per_batch": experiment.share_extra([len(split.labels) for split in extra]),
            "replays": experiment.objective.get("replays", 1),
            "mesh": experiment.build_mesh(),
            "epoch_steps": experiment.dataset.epoch_steps,
        }
        return (
            EncodedStream(train, workers=experiment.dataset.workers, **options) if encoded else Stream(train, **options)
        )
    _check_fits(train, extra)
    pairs = [(jnp.asarray(split.images), jnp.asarray(split.labels)) for split in (train, *extra)]
    own, *sources = pairs
    return Examples(*own, extra=(sources[0] if len(sources) == 1 else tuple(sources)) if sources else None)


def _check_fits(train: Split, extra: Sequence[Split]) -> None:
    own, mixed_in = math.prod(train.images.shape), sum(math.prod(split.images.shape) for split in extra)
    there = device_memory()
    if there is not None and own + mixed_in > there:
        of_extra = f", {in_units(mixed_in)} of them generated," if mixed_in else ""
        raise InputError(
            f"the training images take {in_units(own + mixed_in)}{of_extra} and the device has {in_units(there)}; "
            "set dataset.stream=True, which keeps them on the host"
        )
