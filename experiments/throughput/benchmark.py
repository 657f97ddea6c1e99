"""Throughput of this library and of PyTorch, which take turns in the same run.

    python -m experiments.throughput.benchmark --models=resnet18 --batches=64,128

The flags are those of piat-benchmark, and --ours_only. README.md here says how to run it and what the table means.
"""

import importlib.util
from collections.abc import Sequence

from absl import flags

from piat_jax.benchmark import measure, ours
from piat_jax.cli import arguments, benchmark, errors


def main(argv: Sequence[str]) -> None:
    """The command."""
    values = benchmark.new_flags("experiments/results/throughput")
    flags.DEFINE_boolean("ours_only", False, "Leave PyTorch out.", flag_values=values)
    arguments.parse(values, argv, __doc__)
    sides = {"ours": ours.prepare}
    if not values.ours_only:
        if importlib.util.find_spec("torch"):
            from experiments.throughput import torch_side

            sides["pytorch"] = torch_side.prepare
        else:
            print("torch is not installed: only this library is measured")
    measure.run(values, sides)


if __name__ == "__main__":
    errors.leave(errors.run(main))
