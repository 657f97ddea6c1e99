"""List the methods, each with a sentence, its paper and its defaults.

    piat-methods
    piat-methods awp trades+awp+piat

A method is its parts joined by +: one objective, then wrappers from the inside out, an average, and piat.
"""

from collections.abc import Sequence

from piat_jax.cli import arguments, errors


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    names = arguments.parse(arguments.new_flags(), argv, __doc__, positional=True)

    from piat_jax.experiment.methods import describe, parts

    if names:
        print("\n".join(map(describe, names)))
        return
    for title, members in parts().items():
        print(f"{title}\n{'=' * len(title)}")
        print("\n".join(map(describe, members)), end="\n\n")


def entry() -> None:
    """The console entry point."""
    errors.leave(errors.run(main))


if __name__ == "__main__":
    entry()
