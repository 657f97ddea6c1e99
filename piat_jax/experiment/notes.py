"""What a run says before it trains because it may not be meant."""

from piat_jax.averaging import EQUAL_WEIGHT, share_of_first
from piat_jax.experiment.experiment import Experiment

LARGE = 0.1
"""A share of one old state in an average that is worth a word."""


def old_averages(experiment: Experiment, steps: int) -> list[str]:
    """A line for each exponential average that the run, of so many steps an epoch, will not have filled."""
    kept = experiment.build_average()
    groups = {name: experiment.wrappers[name] for name in ("rebat", "rpatpp") if name in experiment.wrappers}
    found = [(name, fields.decay, fields.start, steps) for name, fields in groups.items()]  # each step, from a start on
    if kept and kept.weight != EQUAL_WEIGHT:
        found.append(("average", kept.weight, kept.start, steps if kept.every == "step" else 1))
    notes = []
    for group, weight, start, per_epoch in found:
        first = round(start * experiment.epochs)
        states = (experiment.epochs - first) * per_epoch
        if states and (share := share_of_first(weight, states)) > LARGE:
            after = f"epoch {first + 1}" if per_epoch == 1 else f"step {first * steps + 1}"
            decay = (groups.get(group) or experiment.average).decay
            notes.append(
                f"at the end {100 * share:.0f} % of the average is still the weights after {after}, the first of "
                f"{states} that it takes in; a lower --config.{group}.decay than {decay:g} forgets sooner"
            )
    return notes
