"""What a run says before it trains because it may not be meant."""

from piat_jax.averaging import EQUAL_WEIGHT, share_of_first
from piat_jax.cli import build
from piat_jax.cli.config import Config

LARGE = 0.1
"""A share of one old state in an average that is worth a word."""


def old_averages(config: Config, steps: int) -> list[str]:
    """A line for each exponential average that the run, of so many steps an epoch, will not have filled."""
    kept = build.average(config)
    groups = [name for name in ("rebat", "rpatpp") if name in config]  # each step, from the method's start on
    found = [(name, config[name].decay, config[name].start, steps) for name in groups]
    if kept and kept.weight != EQUAL_WEIGHT:
        found.append(("average", kept.weight, kept.start, steps if kept.every == "step" else 1))
    notes = []
    for group, weight, start, per_epoch in found:
        first = round(start * config.epochs)
        states = (config.epochs - first) * per_epoch
        if states and (share := share_of_first(weight, states)) > LARGE:
            after = f"epoch {first + 1}" if per_epoch == 1 else f"step {first * steps + 1}"
            notes.append(
                f"note: at the end {100 * share:.0f} % of the average is still the weights after {after}, the first of "
                f"{states} that it takes in; a lower --config.{group}.decay than {config[group].decay:g} forgets sooner"
            )
    return notes
