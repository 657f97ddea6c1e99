"""Reproduce a figure or table of a paper: train missing runs, resume unfinished ones, evaluate, draw, report.

    python -m experiments.run piat                         # list the items
    python -m experiments.run piat table1 --dry_run        # which runs, and what they would cost
    python -m experiments.run piat table1 fig6             # small: 512 images that are in the package, on a CPU
    python -m experiments.run piat table1 --scale=paper --data=cifar10 --config.dataset.data_dir=~/data
    python -m experiments.run piat table1 --collect        # report what is finished so far
    python -m experiments.run piat report                  # only the report, from the files in --out

Papers are piat, rpat and ecas. Runs that items have in common are trained once; a second call resumes an
interrupted one. Any field of the configs can be set, for all runs. --out receives a JSON file and pictures for each
item, and report.md and report.html of all items in it.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from experiments import cost
from experiments.engine import figures, kept, report
from experiments.engine.figures import render
from experiments.engine.items import SCALES, Item, Setting
from experiments.engine.results import Result, collect, to_json
from experiments.studies import screened
from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError, check_at_least, check_choice
from piat_jax.core.files import expanded, write_file, write_json
from piat_jax.experiment import sweep
from piat_jax.experiment.run_evaluation import is_evaluated
from piat_jax.training.progress import duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPERS = ("piat", "rpat", "ecas")
SUFFIXES = (".png", ".svg")


def main(argv: Sequence[str]) -> None:
    """The command."""
    overrides, rest = arguments.split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_enum("scale", "small", SCALES, "The paper's data and networks, or small ones.", flag_values=values)
    flags.DEFINE_list("data", [], "Data sets, of those the item has at this scale; all by default.", flag_values=values)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.", flag_values=values)
    flags.DEFINE_list("rows", [], "Run only these rows, as the report names them; all by default.", flag_values=values)
    flags.DEFINE_integer("jobs", 0, "Runs at the same time; 0 = as the device allows.", flag_values=values)
    flags.DEFINE_integer(
        "aa_examples", 0, "AutoAttack runs on the first n test images; 0 = as the item says.", flag_values=values
    )
    flags.DEFINE_string("workdir", "runs/papers", "Folder of the runs.", flag_values=values)
    flags.DEFINE_string("out", None, "Folder of the results; runs/papers/PAPER-SCALE by default.", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "Only say what would run.", flag_values=values)
    flags.DEFINE_boolean("collect", False, "Run nothing; report the finished runs.", flag_values=values)
    flags.DEFINE_float("tflops", 0.05, "TFLOP/s that --dry_run assumes.", flag_values=values)
    positional = arguments.parse(values, rest, __doc__, positional=True)
    if not positional:
        raise InputError(f"which paper? {', '.join(PAPERS)}; see --help")
    paper, names = positional[0], positional[1:]
    check_choice("paper", paper, PAPERS)
    items = {item.key: item for item in importlib.import_module(f"experiments.papers.{paper}").ITEMS}
    if not names:
        print("\n".join(describe(item) for item in items.values()))
        return
    out = expanded(values.out or f"runs/papers/{paper}-{values.scale}")
    for name in names:
        check_choice("item", name, [*items, "all", "report"])
    seeds = [_seed(text) for text in values.seeds]
    chosen = [item.at(values.scale) for name, item in items.items() if name in names or "all" in names]
    if "all" in names:
        chosen = [item for item in chosen if values.scale in item.settings]
    plan = [(item, settings(item, values.scale, values.data, values.aa_examples)) for item in chosen]
    for name in values.rows:
        check_choice("rows", name, [row.name for item, _ in plan for row in item.rows])
    folder = expanded(values.workdir)
    due: dict[Path, sweep.Job] = {}
    to_screen: dict[Path, int] = {}
    for item, found in plan:
        for setting in found:
            for job in only(item, values.rows).jobs(setting, seeds, folder, overrides):
                due[job.folder] = _joined(due.get(job.folder), job)
                if setting.aa_blocks and "aa" in item.attacks:
                    to_screen[job.folder] = setting.aa_blocks
    sweep.check(list(due.values()))
    kept.load(out)  # says what is wrong with it before anything runs
    if values.dry_run:
        print(estimate(list(due.values()), values.tflops, to_screen))
        return
    if not values.collect:
        sweep.run_jobs(list(due.values()), at_once=values.jobs)
        for path, count in to_screen.items():
            print(screened.described(path, screened.screen_run(path, count)))
    for item, found in plan:
        print(f"{item.title}: {', '.join(map(str, save(paper, item, values.scale, found, seeds, folder, out)))}")
    for path in report.write(out, paper, list(items)):
        print(path)


def describe(item: Item) -> str:
    """A line or two on an item."""
    at = "; ".join(f"{scale}: {', '.join(s.name for s in found)}" for scale, found in item.settings.items())
    return f"{item.key:16}{item.title}\n{'':16}{at}"


def settings(item: Item, scale: str, data: Sequence[str], aa_examples: int = 0) -> list[Setting]:
    """The chosen data sets of an item.

    Args:
      item: a figure or table.
      scale: of `SCALES`.
      data: names of its data sets; empty = all.
      aa_examples: number of test images for AutoAttack; 0 = as the item says.

    Raises:
      InputError: the item has no such scale or data set.
    """
    if scale not in item.settings:
        raise InputError(f"{item.key} has no --scale={scale}; give --scale={', '.join(item.settings)}")
    known = {setting.name: setting for setting in item.settings[scale]}
    for name in data:
        check_choice("data", name, known)
    check_at_least("aa_examples", aa_examples, 0)
    own = {"aa_examples": aa_examples, "aa_blocks": 0} if aa_examples else {}
    return [dataclasses.replace(setting, **own) for name, setting in known.items() if not data or name in data]


def only(item: Item, rows: Sequence[str]) -> Item:
    """The item with these rows only; with all if none is given."""
    return dataclasses.replace(item, rows=tuple(row for row in item.rows if not rows or row.name in rows))


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"seeds: {text!r} is not a whole number; give such as --seeds=0,1,2") from None


def _joined(one: sweep.Job | None, other: sweep.Job) -> sweep.Job:
    """A run that several items need, with the attacks of all."""
    if one is None:
        return other
    return other._replace(attacks=tuple(dict.fromkeys((*one.attacks, *other.attacks))))


def estimate(due: Sequence[sweep.Job], tflops: float, to_screen: Mapping[Path, int] = {}) -> str:
    """The runs that would start, with the floating-point operations and hours of training and AutoAttack.

    Args:
      due: the runs.
      tflops: TFLOP/s.
      to_screen: folders of runs that get AutoAttack by `studies.screened`, with the size of its blocks.
    """
    check_at_least("tflops", tflops, 1e-6)

    def shown(flop: float) -> str:
        return f"{flop / 1e12:.3g} TFLOP, {duration(flop / tflops / 1e12)}"

    lines, training, attacking = [], 0.0, 0.0
    for job in due:
        experiment, trained = job.experiment(), sweep.is_trained(job)
        done = trained and is_evaluated(experiment, job.run, aa_examples=job.aa_examples)
        if "aa" in job.attacks and not done:
            attacking += 2 * cost.autoattack_flop(experiment, job.aa_examples)  # best and final
        if job.folder in to_screen and not screened.read(job.folder):
            attacking += 2 * cost.autoattack_flop(experiment)
        if trained:
            lines.append(f"{job.folder}  trained")
        elif sweep.teachers(job.method):
            lines.append(f"{job.folder}  not estimated: its teachers are trained first")
        else:
            flop = cost.training_flop(experiment)
            training += flop
            lines.append(f"{job.folder}  {shown(flop)}")
    lines.append(f"{len(due)} run{'s' * (len(due) != 1)}; training: {shown(training)} at {tflops:g} TFLOP/s (--tflops)")
    if attacking:
        lines.append(f"AutoAttack: at most {shown(attacking)}, if every image stays robust (--aa_examples)")
    return "\n".join(lines)


def save(
    paper: str, item: Item, scale: str, found: Sequence[Setting], seeds: Sequence[int], folder: Path, out: Path
) -> list[Path]:
    """Collect an item's runs, study and draw them, and write what the report is made of."""
    # A study is of the runs themselves.
    result = collect(item, scale, found, seeds, folder, {} if item.study else kept.load(out))
    if not any(entry.runs for entry in result.entries):
        raise InputError(f"{item.key} has no evaluated run in {folder}; leave out --collect")
    if item.study:
        result = dataclasses.replace(result, study=study_of(item).run(result))
    figures = draw(result)
    content = to_json(paper, result, keys_of(item))
    content["pictures"] = {setting: [[f"{_stem(item, setting)}.png", item.title]] for setting in figures}
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{item.key}.json"]
    for setting, figure in figures.items():
        for suffix in SUFFIXES:
            paths.append(out / f"{_stem(item, setting)}{suffix}")
            data = render(figure, suffix)
            write_file(paths[-1], lambda file, data=data: file.write(data))
    runs = {kept.name_of(run.folder): run for entry in result.entries for run in entry.runs}
    kept.save(out, runs)
    # Last, because a report reads any JSON file in the folder.
    write_json(paths[0], content)
    return paths


def keys_of(item: Item) -> list[str]:
    """The measures of an item's table."""
    keys = []
    for attack in item.attacks:
        keys += [f"{checkpoint}:{attack}" for checkpoint in item.checkpoints]
        keys += [f"diff:{attack}"] if "diff" in item.extra else []
    keys += [
        f"{name}:{checkpoint}"
        for name in ("mean", "nrr", "beyond")
        if name in item.extra
        for checkpoint in item.checkpoints
    ]
    return keys + [name for name in ("oscillation", "gap", "seconds") if name in item.extra]


def study_of(item: Item) -> Any:
    """The module of an item's study: `run(result)` gives what is kept as JSON, `draw(result, setting)` a figure."""
    return importlib.import_module(f"experiments.studies.{item.study}")


def draw(result: Result) -> dict[str, "Figure"]:
    """The item's figures, by the data set's name; none of what has no run."""
    item, drawn = result.item, {}
    draws = getattr(figures, item.draw) if item.draw else study_of(item).draw if item.study else None
    for setting in result.settings:
        if draws and result.ran(setting) and (figure := draws(result, setting)):
            drawn[setting.name] = figure
    return drawn


def _stem(item: Item, setting: str) -> str:
    return f"{item.key}_{setting}"


if __name__ == "__main__":
    errors.leave(errors.run(main))
