"""Tables of further evaluations: minimum norms, common corruptions, transfer attacks."""

from collections.abc import Callable, Sequence

from piat_jax.analysis.runs import CorruptionScores, RunResults, group_runs
from piat_jax.analysis.table import Column, Table, make_table
from piat_jax.analysis.tables import NORM_NAMES, attack_name


def minimum_norm_table(runs: Sequence[RunResults]) -> Table | None:
    """The median norms from minimum-norm attacks; None if none was run.

    Raises:
      InputError: from group_runs.
    """
    names = minimum_norm_names(runs)
    if not names:
        return None
    columns = [
        Column(f"{name} {checkpoint.capitalize()}", _median_of(attack, checkpoint), digits=5)
        for attack, name in names.items()
        for checkpoint in ("best", "final")
    ]
    notes = [
        "Median norm of the nearest misclassified images that were found, over the correctly classified clean test "
        "examples; pixels in [0, 1]."
    ]
    return make_table(group_runs(runs), columns, notes)


def minimum_norm_names(runs: Sequence[RunResults]) -> dict[str, str]:
    """The minimum-norm attacks of any run, and their names in a table.

    >>> minimum_norm_names([])
    {}
    """
    points = [point for run in runs for point in run.checkpoints.values()]
    found: dict[str, dict[str, None]] = {}
    for attack, curve in (item for point in points for item in point.minimum_norm.items()):
        found.setdefault(attack, {})[NORM_NAMES.get(curve.norm, curve.norm)] = None
    return {attack: f"{attack_name(attack)} ({' or '.join(norms)})" for attack, norms in found.items()}


def _median_of(attack: str, checkpoint: str) -> Callable[[RunResults], float | None]:
    def value(run: RunResults) -> float | None:
        found = run.checkpoints[checkpoint].minimum_norm.get(attack) if checkpoint in run.checkpoints else None
        return None if found is None else found.median

    return value


def corruption_table(runs: Sequence[RunResults], checkpoint: str) -> Table | None:
    """A checkpoint's accuracy under common corruptions, by corruption; None if no run has it.

    Raises:
      InputError: from group_runs.
    """
    found = [run.checkpoints[checkpoint].corruptions for run in runs if checkpoint in run.checkpoints]
    scores = [each for each in found if each]
    if not scores:
        return None

    def column(name: str, of: Callable[[CorruptionScores], float | None], *, lowest: bool = False) -> Column:
        def value(run: RunResults) -> float | None:
            point = run.checkpoints.get(checkpoint)
            number = of(point.corruptions) if point and point.corruptions else None
            return None if number is None else 100 * number

        return Column(name, value, lowest=lowest)

    names = dict.fromkeys(name for each in scores for name in each.by_corruption)
    normalised = {each.normalised for each in scores}
    columns = [
        column("Clean", lambda each: each.clean),
        column("Mean", lambda each: each.mean),
        column("mCE" if normalised == {True} else "Mean error", lambda each: each.mce, lowest=True),
        *([column("Extra", lambda each: each.extra)] if any(each.extra is not None for each in scores) else []),
        *(column(name, lambda each, name=name: each.by_corruption.get(name)) for name in names),
    ]
    counts = " or ".join(map(str, sorted({each.num_examples for each in scores})))
    how = "mCE: errors relative to AlexNet's." if normalised == {True} else "The mean error is not normalised."
    notes = [
        f"Accuracy (%) of the {checkpoint} checkpoint on {counts} images at each of five severities. Mean: over the "
        f"fifteen corruptions of the paper; extra ones are separate. {how}"
    ]
    if len(normalised) > 1:
        notes.append("Some errors are relative to AlexNet's and some are not, so their column is not comparable.")
    return make_table(group_runs(runs), columns, notes)


def transfer_table(runs: Sequence[RunResults]) -> Table | None:
    """The accuracy of the best and the final checkpoint under transfer attacks; None if no run has it.

    Raises:
      InputError: from group_runs.
    """
    found = dict.fromkeys(pair for run in runs for point in run.checkpoints.values() for pair in point.transfer)
    if not found:
        return None

    def column(source: str, attack: str, checkpoint: str) -> Column:
        def value(run: RunResults) -> float | None:
            point = run.checkpoints.get(checkpoint)
            number = point.transfer.get((source, attack)) if point else None
            return None if number is None else 100 * number

        return Column(f"{attack_name(attack)} from {_short_source(source)} {checkpoint.capitalize()}", value)

    columns = [column(*pair, checkpoint) for pair in found for checkpoint in ("best", "final")]
    notes = ["Accuracy (%) under adversarial images that were crafted on another network."]
    return make_table(group_runs(runs), columns, notes)


def _short_source(source: str) -> str:
    """A short name for a checkpoint's folder.

    >>> _short_source("runs/b/checkpoints/best"), _short_source("runs/b/checkpoints/last")
    ('b best', 'b final')
    """
    folder, _, name = source.partition("/checkpoints/")
    return f"{folder.rpartition('/')[2]} {'final' if name == 'last' else name}".strip()
