"""The PIAT paper's toy study (its Figs. 2 to 5) on many seeds: what oscillates, by how much, and what that does.

    python -m experiments.toy --seeds=20 --out=experiments/results/toy

PGD-AT, PIAT, ALP and NMSE train a network of one hidden layer on two noisy concentric circles. Each seed has its own
points, weights and order of batches, which the four methods share, so that differences are paired. Writes runs.csv,
summary.md and the figures (.png and .svg), all at the end.
"""

import csv
import dataclasses
import io
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import markdown
from experiments.engine.claims import MARGIN, Claim, Interval, interval, verdict
from experiments.engine.figures import render
from experiments.toy import figures as toy_figures
from experiments.toy.study import METHODS, History, Measures, Settings, measure, train_method
from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded, write_file
from piat_jax.training.progress import duration

PASSES_PER_SECOND, COMPILE_SECONDS = 2e7, 10  # on two cores of an AMD EPYC, for the estimate of --dry_run
NAMES = {
    "deviation": "Deviation",
    "drop": "Largest drop",
    "final_robust": "Robust, final",
    "best_robust": "Robust, best",
    "mean_robust": "Robust, mean",
    "final_clean": "Clean, final",
    "mean_clean": "Clean, mean",
    "change_at_drop": "Boundary, at drop",
    "mean_change": "Boundary, mean",
}
PAIRS = (("piat", "pgd_at"), ("nmse", "alp"), ("alp", "pgd_at"), ("nmse", "pgd_at"))


CLAIMS = (
    Claim("PIAT's robust accuracy oscillates less", "piat", "pgd_at", "deviation", "lower"),
    Claim("its largest drop is smaller", "piat", "pgd_at", "drop", "lower"),
    Claim("its boundary moves less in the epoch of the drop", "piat", "pgd_at", "change_at_drop", "lower"),
    Claim("PIAT ends more robust", "piat", "pgd_at", "final_robust", "higher"),
    Claim("its best epoch is more robust", "piat", "pgd_at", "best_robust", "higher"),
    Claim("PIAT keeps the clean accuracy", "piat", "pgd_at", "final_clean", "kept"),
    Claim("ALP gains robustness", "alp", "pgd_at", "final_robust", "higher"),
    Claim("ALP loses clean accuracy", "alp", "pgd_at", "final_clean", "lower"),
    Claim("NMSE gains robustness", "nmse", "pgd_at", "final_robust", "higher"),
    Claim("NMSE keeps the clean accuracy", "nmse", "pgd_at", "final_clean", "kept"),
    Claim("NMSE has more clean accuracy than ALP", "nmse", "alp", "final_clean", "higher"),
)


def main(argv: Sequence[str]) -> None:
    """The command."""
    values = arguments.new_flags()
    flags.DEFINE_string("out", "experiments/results/toy", "Folder to write to.", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "Only say what would run, and for how long.", flag_values=values)
    for field in dataclasses.fields(Settings):
        define: Any = flags.DEFINE_integer if field.type is int else flags.DEFINE_float
        define(field.name, field.default, field.metadata["help"], flag_values=values)
    arguments.parse(values, argv, __doc__)
    settings = Settings(**{field.name: getattr(values, field.name) for field in dataclasses.fields(Settings)})
    out = expanded(values.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out={values.out} is a file; give a folder")
    print(
        f"{len(METHODS)} methods x {settings.seeds} seeds x {settings.epochs} epochs of {settings.train_points} points"
    )
    if values.dry_run:
        seconds = COMPILE_SECONDS + settings.passes / PASSES_PER_SECOND
        print(f"about {duration(seconds)} on two cores; would write to {out}; with")
        print("  " + ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(settings).items()))
        return

    histories = {}
    for method, name in METHODS.items():
        began = time.perf_counter()
        histories[method] = train_method(method, settings)
        print(f"{name:7} {time.perf_counter() - began:6.1f} s", flush=True)
    measures = {method: measure(history.scores, settings.warmup) for method, history in histories.items()}
    text = summary(measures, settings)
    files = {"runs.csv": table_of_runs(histories).encode(), "summary.md": text.encode()}
    for name, figure in toy_figures.draw(histories, measures, settings).items():
        files |= {f"{name}{suffix}": render(figure, suffix) for suffix in (".png", ".svg")}
    # Only now, when nothing can fail any more but the disk.
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_file(out / name, lambda file, content=content: file.write(content))
    print(f"\n{text}\nwritten to {out}: {', '.join(files)}")


def table_of_runs(histories: dict[str, History]) -> str:
    """CSV with a row for each method, seed and epoch; accuracies and areas as shares."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = next(iter(histories.values())).scores._fields
    writer.writerow(["method", "seed", "epoch", *fields])
    for method, history in histories.items():
        seeds, epochs = history.scores.test_clean.shape
        for seed in range(seeds):
            for epoch in range(epochs):
                writer.writerow(
                    [method, seed, epoch + 1, *(f"{getattr(history.scores, name)[seed, epoch]:.5g}" for name in fields)]
                )
    return text.getvalue()


def summary(measures: dict[str, Measures], settings: Settings) -> str:
    """The methods, their differences and the verdicts as Markdown tables."""
    heads = ["", *NAMES.values()]
    methods = [
        [METHODS[method], *(interval(getattr(found, key)).text() for key in NAMES)]
        for method, found in measures.items()
    ]
    pairs = [
        [f"{METHODS[a]} - {METHODS[b]}", *(_difference(measures, a, b, key).text() for key in NAMES)] for a, b in PAIRS
    ]
    claims = []
    for claim in CLAIMS:
        found = _difference(measures, claim.method, claim.other, claim.measure)
        what = f"{METHODS[claim.method]} - {METHODS[claim.other]}, {NAMES[claim.measure].lower()}"
        claims.append([claim.text, what, found.text(), f"**{verdict(claim, found)}**"])
    return "\n".join(
        [
            markdown.table(heads, methods, words=None),
            "",
            markdown.table(heads, pairs, words=None),
            "",
            markdown.table(["Claim", "Difference", "Points", "Verdict"], claims, words=None),
            "",
            f"Mean over {settings.seeds} seeds and its 95 % t interval; the last two tables are of paired "
            "differences. Percent and percentage points.",
            f"Deviation (sample standard deviation) and mean: over the epochs after {settings.warmup}. Best: the "
            "highest of all epochs, on the test points. Boundary: share of the square that an epoch gave to the other "
            "class.",
            f"Holds, does not hold: the interval lies on one side of 0 (of -{MARGIN:g} for what is kept).",
            "",
        ]
    )


def _difference(measures: dict[str, Measures], method: str, other: str, key: str) -> Interval:
    return interval(getattr(measures[method], key) - getattr(measures[other], key))


if __name__ == "__main__":
    errors.leave(errors.run(main))
