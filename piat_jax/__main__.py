"""`python -m piat_jax`: the list of commands; `python -m piat_jax train ...` is piat-train."""

import importlib
import sys

import piat_jax

COMMANDS = {
    "piat-train": "train one model from a config",
    "piat-evaluate": "evaluate runs under attacks, including AutoAttack",
    "piat-report": "compare runs: tables and figures",
    "piat-sweep": "train, evaluate and report several methods, seeds and settings",
    "piat-methods": "list the methods with papers and defaults",
    "piat-data": "inspect a data set, or make a cache of it",
    "piat-convert": "convert weights between formats",
    "piat-benchmark": "measure the throughput on this machine",
    "piat-plan": "plan a run on a GPU or TPU that is not present",
}


def main() -> None:
    """Run a command, or list all commands."""
    name = f"piat-{sys.argv[1].removeprefix('piat-')}" if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        del sys.argv[1]
        importlib.import_module(f"piat_jax.cli.{name.removeprefix('piat-')}").entry()
    print(f"piat_jax {piat_jax.__version__}")
    if sys.argv[1:] == ["--version"]:
        return
    print()
    for known, text in COMMANDS.items():
        print(f"  {known:16}{text}")
    print("\nEach has --help; python -m piat_jax train and so on are the same commands.")
    if sys.argv[1:] not in ([], ["--help"]):
        sys.exit(f"error: {sys.argv[1]!r} is not one of these commands")


if __name__ == "__main__":
    main()
