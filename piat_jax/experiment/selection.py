"""Selection of the best checkpoint. Scores are compared only if they were measured in the same way."""

from collections.abc import Mapping, Sequence
from typing import Any

from piat_jax.checkpoint import Restored
from piat_jax.experiment.evaluation import settings_of
from piat_jax.experiment.experiment import Experiment, differences
from piat_jax.experiment.run import Run


class Selection:
    """The best epoch of a run so far, and whether another one may replace it.

    Args:
      measured: the settings that a score depends on now, from `how_measured`.
      best: `{"measured", "epoch", "score"}` of the best checkpoint; None if there is none.
    """

    def __init__(self, measured: Mapping[str, Any], best: Mapping[str, Any] | None = None):
        self.measured, self.best = dict(measured), dict(best) if best else None

    @property
    def stays(self) -> bool:
        """Whether the best score was measured with other settings, so that no score can be compared with it."""
        return self.best is not None and self.best["measured"] != self.measured

    def take(self, epoch: int, scores: Mapping[str, float]) -> bool:
        """Whether an epoch with these scores is the best so far; if so, it is stored as the best.

        >>> selection = Selection({"score": "test_pgd20"})
        >>> [selection.take(epoch, {"test_pgd20": score}) for epoch, score in enumerate((0.5, 0.5, 0.6), 1)]
        [True, False, True]
        """
        name = self.measured["score"]
        least = self.best["score"] if self.best else None
        if self.stays or name not in scores or (least is not None and scores[name] <= least):
            return False
        self.best = {"measured": self.measured, "epoch": epoch, "score": scores[name]}
        return True

    def note(self) -> str:
        """The note if the best checkpoint cannot be replaced; "" if it can."""
        if self.best is None or not self.stays:
            return ""
        changed = "; ".join(differences(self.best["measured"], self.measured))
        return (
            f"the best checkpoint, of epoch {self.best['epoch']}, was chosen under other settings ({changed}). "
            "Scores under the new settings cannot be compared with its score, so it stays the best"
        )


def how_measured(experiment: Experiment) -> dict[str, Any]:
    """The settings that the selection score depends on, besides the run itself."""
    name = experiment.evaluation.select
    settings = settings_of(experiment)
    if name == "clean":
        settings = {"precision": settings["precision"]}
    return {"score": f"{experiment.monitor}_{name}", **settings}


def resumed(experiment: Experiment, run: Run, restored: Restored, records: Sequence[Mapping[str, Any]]) -> Selection:
    """The selection of a run that resumes from `restored`, with one record for each completed epoch.

    A best checkpoint of a later epoch is removed if the resumed run will reproduce it.
    """
    measured = how_measured(experiment)
    checkpoints = run.checkpoints
    if "best" not in checkpoints:
        return Selection(measured)
    info, said = checkpoints.info("best"), restored.info.get("selection")
    if "selection" not in info:  # saved by an older version
        known = said and said["epoch"] == info["epoch"]
        info["selection"] = said if known else _of_older_version(how_measured(run.experiment()), [info])
    selection = Selection(measured, info["selection"])
    if selection.stays or info["epoch"] <= (records[-1]["epoch"] if records else 0):
        return selection
    checkpoints.discard("best")
    return Selection(measured, said or _of_older_version(measured, [{**row, "scores": row} for row in records]))


def _of_older_version(measured: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The best of some epochs with numbers and scores, if no record says how it was chosen."""
    name = measured["score"]
    best = max((row for row in epochs if name in row["scores"]), key=lambda row: row["scores"][name], default=None)
    return None if best is None else {"measured": dict(measured), "epoch": best["epoch"], "score": best["scores"][name]}
