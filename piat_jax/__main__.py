"""`python -m piat_jax`: the list of commands."""

import piat_jax

COMMANDS = {
    "piat-train": "train one model from a config",
    "piat-evaluate": "accuracy of runs under attacks, AutoAttack among them",
    "piat-report": "compare runs: tables and figures",
    "piat-sweep": "train, evaluate and report several methods, seeds and settings",
    "piat-methods": "list the methods with papers and defaults",
    "piat-data": "look at a data set, or make a cache of it",
    "piat-convert": "weights from one form into another",
    "piat-benchmark": "throughput on this machine",
}

if __name__ == "__main__":
    print(f"piat_jax {piat_jax.__version__}\n")
    for name, text in COMMANDS.items():
        print(f"  {name:16}{text}")
    print("\nEach has --help. Without them on the path: python -m piat_jax.cli.train, and so on.")
