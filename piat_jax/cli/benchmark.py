"""Measure the throughput of training, evaluation and AutoAttack on this machine.

    piat-benchmark --models=resnet18 --batches=64,128 --what=train,evaluate

Measures this library alone; in a checkout, `python -m experiments.throughput.benchmark` has the same flags and measures
PyTorch in turn with it. "train" is a step of PGD-10 + NMSE, "evaluate" PGD-20, "autoattack" its four attacks on one
block each; each of these attacks may also be named alone. The images are noise of CIFAR's size (Fashion-MNIST's for
the model "small"). Appends one line per case to results.jsonl in --out, and writes all cases to the table results.md.
"""

import math
from collections.abc import Sequence

from absl import flags

from piat_jax.cli import arguments, errors


def new_flags(out: str = "throughput") -> flags.FlagValues:
    """The command's flags; `out` is the default of --out."""
    values = arguments.new_flags()
    flags.DEFINE_list("models", ["small", "resnet18"], "small, resnet18, wrn_32_10.", flag_values=values)
    flags.DEFINE_list("batches", ["64", "128"], "Batch sizes.", flag_values=values)
    flags.DEFINE_string("dtype", "float32", "Data type of activations: float32 or bfloat16.", flag_values=values)
    flags.DEFINE_list("what", ["train", "evaluate", "autoattack"], "What to measure.", flag_values=values)
    flags.DEFINE_integer("steps", 10, "Steps of the attacks in training and AutoAttack (Square: queries); "
                         "the evaluation takes twice as many.", flag_values=values)  # fmt: skip
    flags.DEFINE_integer("rounds", 5, "Rounds of each side, in turn; at least 5.", flag_values=values)
    flags.DEFINE_float("seconds", 1.0, "Minimum length of a round: short work is repeated.", flag_values=values)
    flags.DEFINE_float("minutes", math.inf, "Start no further case after this time.", flag_values=values)
    flags.DEFINE_string("out", out, "Folder to write to.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Run the command, for this library alone."""
    values = new_flags()
    arguments.parse(values, argv or ["--help"], __doc__)

    from piat_jax.benchmark import measure, ours

    measure.run(values, {"ours": ours.prepare})


def entry() -> None:
    """The console entry point."""
    errors.leave(errors.run(main))


if __name__ == "__main__":
    entry()
