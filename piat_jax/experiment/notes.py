"""What a run says before it trains because it may not be meant."""

from collections.abc import Sequence

import numpy as np

from piat_jax.averaging import EQUAL_WEIGHT, share_of_first
from piat_jax.core.files import expanded
from piat_jax.core.memory import in_units
from piat_jax.data import Split
from piat_jax.data.npz import unpacking
from piat_jax.experiment.experiment import Experiment

LARGE = 0.1
"""A share of one old state in an average that is worth a word."""
UNPACKED_BYTES = 1 << 30
"""Of generated images from a compressed file, which are worth one."""


def unpacked(experiment: Experiment, extra: Sequence[Split]) -> list[str]:
    """A line for each large file of generated examples that is in memory because it is compressed."""
    return [
        f"dataset.extra: {path} is compressed, so its images take {in_units(images.nbytes)} of memory; "
        f"mapped, they take none: {unpacking(expanded(path))}"
        for path, (images, _) in zip(experiment.extra_files, extra)
        if not isinstance(images, np.memmap) and images.nbytes >= UNPACKED_BYTES
    ]


def shifted_crops(experiment: Experiment) -> list[str]:
    """A line where training crops of encoded images are padded and cropped once more."""
    fields = experiment.dataset
    if not fields.image_size or not fields.crop_padding:
        return []
    return [
        f"dataset.crop_padding={fields.crop_padding} pads the random crops of encoded images and crops them once more; "
        "recipes for them have --config.dataset.crop_padding=0"
    ]


def old_averages(experiment: Experiment, steps: int) -> list[str]:
    """A line for each exponential average that the run, of so many steps an epoch, will not have filled."""
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
                f"at the end {100 * share:.0f} % of the average is still the weights after {after}, the first of "
                f"{states} that it takes in; a lower --config.{group}.decay than {decay:g} forgets sooner"
            )
    return notes
