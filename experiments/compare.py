"""piat-sweep with the flags that this command had in the release before: it is called piat-sweep now."""

import sys
from collections.abc import Sequence

from piat_jax.cli import errors, sweep

DEFAULTS = ("--config=embedded", "--workdir=runs/embedded", "--methods=pgd_at,piat,nmse+piat")


def main(argv: Sequence[str]) -> None:
    """The command."""
    print("experiments.compare is piat-sweep now; this name goes with the next release", file=sys.stderr)
    sweep.main([*DEFAULTS, *argv])


if __name__ == "__main__":
    errors.leave(errors.run(main))
