"""Which checkpoint is the best. Scores count against each other only where they were measured alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from piat_jax.checkpoint import Restored
from piat_jax.experiment.evaluation import settings_of
from piat_jax.experiment.experiment import Experiment, differences
from piat_jax.experiment.run import Run


class Selection:
    """The best epoch of a run so far, and whether another may take its place.

    Args:
      measured: what a score depends on now, as `how_measured` has it.
      best: `{"measured", "epoch", "score"}` of the best checkpoint that there is; None where there is none.
    """

    def __init__(self, measured: Mapping[str, Any], best: Mapping[str, Any] | None = None):
        self.measured, self.best = dict(measured), dict(best) if best else None

    @property
    def stays(self) -> bool:
        """Whether the best was measured otherwise, so that no other can be compared with it."""
        return self.best is not None and self.best["measured"] != self.measured

    def take(self, epoch: int, scores: Mapping[str, float]) -> bool:
        """Whether an epoch with these scores is the best so far; if so it is kept in mind.

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
        """What to say where the best stays; "" where it need not."""
        if self.best is None or not self.stays:
            return ""
        changed = "; ".join(differences(self.best["measured"], self.measured))
        return (
            f"the best checkpoint, of epoch {self.best['epoch']}, was chosen under other settings ({changed}). "
            "Scores under these cannot be compared with its own, so it stays the best"
        )


def how_measured(experiment: Experiment) -> dict[str, Any]:
    """What the score that chooses the best epoch depends on, beside the run itself."""
    name = experiment.evaluation.select
    settings = settings_of(experiment)
    if name == "clean":
        settings = {"precision": settings["precision"]}
    return {"score": f"{experiment.monitor}_{name}", **settings}


def resumed(experiment: Experiment, run: Run, restored: Restored, records: Sequence[Mapping[str, Any]]) -> Selection:
    """What a run goes on with whose checkpoint `restored` has these metrics, one record for each epoch that is done.

    A best checkpoint of a later epoch is removed where this run will make it again, the same.
    """
    measured = how_measured(experiment)
    checkpoints = run.checkpoints
    if "best" not in checkpoints:
        return Selection(measured)
    info, said = checkpoints.info("best"), restored.info.get("selection")
    if "selection" not in info:  # of an older version
        known = said and said["epoch"] == info["epoch"]
        info["selection"] = said if known else _of_older_version(how_measured(run.experiment()), [info])
    selection = Selection(measured, info["selection"])
    if selection.stays or info["epoch"] <= (records[-1]["epoch"] if records else 0):
        return selection
    checkpoints.discard("best")
    return Selection(measured, said or _of_older_version(measured, [{**row, "scores": row} for row in records]))


def _of_older_version(measured: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The best of some epochs, each with its number and scores, where nothing says how it was chosen."""
    name = measured["score"]
    best = max((row for row in epochs if name in row["scores"]), key=lambda row: row["scores"][name], default=None)
    return None if best is None else {"measured": dict(measured), "epoch": best["epoch"], "score": best["scores"][name]}
