"""Every method without and with PIAT on the embedded data: the form of the PIAT paper's Fig. 6 and Table III.

    python -m experiments.all_methods --seeds=0,1,2 --workdir=runs/all_methods

Flags are those of piat-sweep, which does the work; a second call resumes. The report's
piat.md and piat.png hold the comparison.
"""

from collections.abc import Sequence

from piat_jax.cli import errors, sweep

METHODS = (
    "pgd_at", "alp", "trades", "mart", "nmse", "mail", "gairat", "fat", "cfa", "rat", "consistency", "awp",
    "rpat", "rebat", "rpatpp", "ecas", "las", "ema", "seat", "swa", "cfa+fawa", "kd+swa",
    "score", "ikl", "stat", "te", "ewat", "sovr", "mma", "adr", "cure", "hat", "lbgat", "dafa", "uiat", "mlcat",
    "generalist", "multi_norm",
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """The command."""
    both = [method + piat for method in METHODS for piat in ("", "+piat")]
    sweep.main(["--config=embedded_512", f"--methods={','.join(both)}", *argv])


if __name__ == "__main__":
    errors.leave(errors.run(main))
