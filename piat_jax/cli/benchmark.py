"""Throughput of training, evaluation and AutoAttack on this machine.

    piat-benchmark --models=resnet18 --batches=64,128 --what=train,evaluate

Measures this library alone; in a checkout, `python -m experiments.throughput.benchmark` has the same flags and lets
PyTorch take turns with it. "train" is the step of PGD-10 + NMSE, "evaluate" PGD-20, "autoattack" its four attacks on
one block each; each of those may be named alone. The images are noise of the size of CIFAR's (of Fashion-MNIST's for
the model "small"). Appends a line for each case to results.jsonl in --out, and makes the table results.md of them all.
"""

import math
import sys
from collections.abc import Sequence

from absl import flags

from piat_jax.cli import arguments, errors


def new_flags(out: str = "throughput") -> flags.FlagValues:
    """The flags of the command; `out` is where it writes if not told."""
    values = arguments.new_flags()
    flags.DEFINE_list("models", ["small", "resnet18"], "small, resnet18, wrn_32_10.", flag_values=values)
    flags.DEFINE_list("batches", ["64", "128"], "Images at once.", flag_values=values)
    flags.DEFINE_string("dtype", "float32", "Of activations: float32, bfloat16.", flag_values=values)
    flags.DEFINE_list("what", ["train", "evaluate", "autoattack"], "What is measured.", flag_values=values)
    flags.DEFINE_integer("steps", 10, "Of the attack in training and of AutoAttack's, Square's queries among them; "
                         "the evaluation takes twice as many.", flag_values=values)  # fmt: skip
    flags.DEFINE_integer("rounds", 5, "Of each side, in turn; at least 5.", flag_values=values)
    flags.DEFINE_float("seconds", 1.0, "Of a round, at least: short work is repeated.", flag_values=values)
    flags.DEFINE_float("minutes", math.inf, "Begin no further case after so long.", flag_values=values)
    flags.DEFINE_string("out", out, "Folder to write to.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """The command, of this library alone."""
    values = new_flags()
    arguments.parse(values, argv or ["--help"], __doc__)

    from piat_jax.benchmark import measure, ours

    measure.run(values, {"ours": ours.prepare})


def entry() -> None:
    """Console entry point."""
    sys.exit(errors.run(main))


if __name__ == "__main__":
    entry()
