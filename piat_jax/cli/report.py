"""Compare runs: best and final checkpoints, stability of training, and curves.

    piat-report runs/pgd_at runs/piat --out=report
    piat-report runs

Each argument is a run's folder or a folder with runs. Writes table.md, table.csv, stability.md, runs.csv (one row per
run) and robust_accuracy.png (the accuracy that selected the best epoch) into --out, by default the folder `report` in
the deepest common folder. For methods that were run with and without PIAT it also writes piat.md and, if there are
several, piat.png. Runs of one method that differ in more than the seed have one row per setting. Runs that have not
been evaluated are left out, with a note.

report.html has everything in one page without other files or a network; its figures are in `figures` as .png and .svg.
--scores=train_loss,test_cw20 draws further metrics over the epochs.

If class accuracies are known, worst_class.md has the worst class and classes.csv all classes. For minimum-norm attacks
minimum_norm.md has the medians, and a figure such as fmn100.png the accuracy as a function of the radius.
corruptions.md has common corruptions, transfer.md transfer attacks, averages.md runs with several averages.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError
from piat_jax.core.files import command, expanded

PAGE, FIGURES = "report.html", "figures"


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    values = arguments.new_flags()
    flags.DEFINE_string("out", None, "Folder to write to.", flag_values=values)
    flags.DEFINE_list("scores", [], "Further metrics to draw over the epochs.", flag_values=values)
    given = [expanded(text) for text in arguments.parse(values, argv, __doc__, positional=True)]
    if not given:
        raise InputError("no run folders given; give at least one, such as piat-report runs; see --help")
    report(given, expanded(values.out) if values.out else _common(given) / "report", scores=values.scores)


def report(folders: Sequence[Path], out: Path, *, scores: Sequence[str] = ()) -> None:
    """Write a report on the runs in `folders` into `out`; `scores` are further metrics to draw."""
    from piat_jax.analysis.curves import MOST_LINES, draw, draw_norms, save
    from piat_jax.analysis.evaluation_tables import (
        corruption_table,
        minimum_norm_names,
        minimum_norm_table,
        transfer_table,
    )
    from piat_jax.analysis.pairs import draw_pairs, find_pairs, piat_table
    from piat_jax.analysis.report import make_report
    from piat_jax.analysis.runs import CHECKPOINTS, EVALUATION, load_run
    from piat_jax.analysis.tables import (
        averages_table,
        best_final_table,
        classes_csv,
        runs_csv,
        stability_table,
        worst_class_table,
    )

    found = find_runs(folders)
    evaluated = [folder for folder in found if (folder / EVALUATION).exists() or not folder.exists()]
    for folder in found:
        if folder not in evaluated:
            how = command("piat-evaluate", workdir=folder)
            print(f"note: {folder} is left out because it has not been evaluated; run {how}", file=sys.stderr)
    if not evaluated:
        raise InputError(f"none of the {len(found)} runs has been evaluated; run piat-evaluate RUN first")
    runs = [load_run(folder) for folder in evaluated]
    table, stability = best_final_table(runs), stability_table(runs)
    pairs = find_pairs(runs)
    selected = Counter(run.selected for run in runs).most_common(1)[0][0]
    plotted = [run for run in runs if run.selected == selected and len(run.series(selected)[0])]
    figures = {}
    several = len({(run.dataset, run.model, run.method) for run in plotted})
    if 0 < several <= MOST_LINES:
        figures["robust_accuracy.png"] = draw(plotted, key=selected, training=True)
    if len(pairs) > 1:
        figures["piat.png"] = draw_pairs(pairs, selected.removeprefix("test_"))
    for attack in minimum_norm_names(runs):
        points = {name: [run.checkpoints.get(name) for run in runs] for name in CHECKPOINTS}
        having = [name for name, found in points.items() if any(each and attack in each.minimum_norm for each in found)]
        try:
            figures[f"{attack}.png"] = draw_norms(runs, attack, checkpoint=having[0])
        except InputError as error:
            print(f"note: no {attack}.png: {error}", file=sys.stderr)

    texts = {"table.md": table.to_markdown(), "table.csv": table.to_csv(), "stability.md": stability.to_markdown()}
    texts["runs.csv"] = runs_csv(runs)
    worst = worst_class_table(runs)
    if worst:
        texts |= {"worst_class.md": worst.to_markdown(), "classes.csv": classes_csv(runs)}
    corrupted = [found for name in CHECKPOINTS if (found := corruption_table(runs, name))]
    if corrupted:
        texts["corruptions.md"] = "\n".join(found.to_markdown() for found in corrupted)
    averages = averages_table(runs)
    if averages:
        texts["averages.md"] = averages.to_markdown()
    norms = minimum_norm_table(runs)
    if norms:
        texts["minimum_norm.md"] = norms.to_markdown()
    transfer = transfer_table(runs)
    if transfer:
        texts["transfer.md"] = transfer.to_markdown()
    if pairs:
        texts["piat.md"] = "\n".join(piat_table(pairs, name).to_markdown() for name in ("best", "final"))
    made = make_report(runs, scores=scores)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if made.figures:
            (out / FIGURES).mkdir(exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
        for name, figure in figures.items():
            save(figure, out / name)
        for name, figure in made.figures.items():
            save(figure, out / FIGURES / f"{name}.png")
            save(figure, out / FIGURES / f"{name}.svg")
        (out / PAGE).write_text(made.html, encoding="utf-8")
    except OSError as error:
        raise InputError(f"out={str(out)!r} cannot be written ({error}); give another --out") from error
    print(table.to_text())
    if averages:
        print(f"Averages\n{averages.to_text()}")
    if norms:
        print(f"Median of the smallest norms\n{norms.to_text()}")
    if worst:
        print(f"Worst class\n{worst.to_text()}")
    if several > MOST_LINES:
        print(f"{several} methods are too many lines for robust_accuracy.png; give at most {MOST_LINES}")
    for run in runs:
        if run not in plotted:
            print(f"{run.folder} has no {selected} in its metrics and is not in the figure")
    for name in (*texts, *figures):
        print(out / name)
    print(out / PAGE)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders among `folders` and (sorted) inside the others; each once."""
    found: dict[Path, Path] = {}
    for folder in folders:
        inside = [] if _is_run(folder) or not folder.is_dir() else sorted(filter(_is_run, folder.iterdir()))
        if folder.is_dir() and not inside and not _is_run(folder):
            raise InputError(f"{folder} is not a run and holds none; give folders that piat-train --workdir=... wrote")
        for run in inside or [folder]:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _is_run(folder: Path) -> bool:
    from piat_jax.analysis.runs import FILES
    from piat_jax.interop.weights import SAFETENSORS

    is_export = (folder / SAFETENSORS).is_file()  # its config.json is not a run's
    return not is_export and any((folder / name).is_file() for name in FILES)


def _common(folders: Sequence[Path]) -> Path:
    """The given folder, or the deepest common folder of several."""
    common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    return Path(os.path.relpath(common)) if not folders[0].is_absolute() else common


def entry() -> None:
    """The console entry point."""
    errors.leave(errors.run(main))


if __name__ == "__main__":
    entry()
