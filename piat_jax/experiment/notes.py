"""Notes before training about settings that may be unintended."""

from collections.abc import Sequence

import numpy as np

from piat_jax.averaging import EQUAL_WEIGHT, share_of_first
from piat_jax.core.files import expanded
from piat_jax.core.memory import in_units
from piat_jax.data import Split
from piat_jax.data.npz import unpacking
from piat_jax.experiment.experiment import Experiment
from piat_jax.loggers import has_tensorboard

LARGE = 0.1
"""The share of one old state in an average from which a note is shown."""
UNPACKED_BYTES = 1 << 30
"""Size of generated images from a compressed file from which a note is shown."""


def unpacked(experiment: Experiment, extra: Sequence[Split]) -> list[str]:
    """A note for each large file of generated examples that occupies memory because it is compressed."""
    return [
        f"dataset.extra: {path} is compressed, so its images take {in_units(images.nbytes)} of memory; "
        f"mapped, they take none: {unpacking(expanded(path))}"
        for path, (images, _) in zip(experiment.extra_files, extra)
        if not isinstance(images, np.memmap) and images.nbytes >= UNPACKED_BYTES
    ]


def shifted_crops(experiment: Experiment) -> list[str]:
    """A note if training crops of encoded images are padded and cropped again."""
    fields = experiment.dataset
    if not fields.image_size or not fields.crop_padding:
        return []
    return [
        f"dataset.crop_padding={fields.crop_padding} pads the random crops of encoded images and crops them again; "
        "recipes for such images have --config.dataset.crop_padding=0"
    ]


def old_averages(experiment: Experiment, steps: int) -> list[str]:
    """A note for each exponential average whose first state still has a large share at the end of the run."""
    wrappers = {name: experiment.wrappers[name] for name in ("rebat", "rpatpp") if name in experiment.wrappers}
    groups = {**wrappers, "average": experiment.average, **experiment.further}
    found = [(name, fields.decay, fields.start, steps) for name, fields in wrappers.items()]  # each step
    for kept in experiment.build_averages():
        if kept.weight != EQUAL_WEIGHT:
            found.append((kept.name or "average", kept.weight, kept.start, steps if kept.every == "step" else 1))
    notes = []
    for group, weight, start, per_epoch in found:
        first = round(start * experiment.epochs)
        states = (experiment.epochs - first) * per_epoch
        if states and (share := share_of_first(weight, states)) > LARGE:
            after = f"epoch {first + 1}" if per_epoch == 1 else f"step {first * steps + 1}"
            decay = groups[group].decay
            notes.append(
                f"at the end, {100 * share:.0f} % of the average still comes from the weights after {after}, the first "
                f"of its {states} states; a --config.{group}.decay below {decay:g} forgets sooner"
            )
    return notes


def no_tensorboard(wanted: object) -> list[str]:
    """A note if TensorBoard events are wanted and cannot be written; for settings that the user gave.

    Args:
      wanted: the value of log.tensorboard, true, or its text.
    """
    if str(wanted).lower() not in ("true", "1") or has_tensorboard():
        return []
    return ["TensorBoard events are not written: pip install 'piat_jax[logging]'"]
