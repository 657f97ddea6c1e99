"""The state of a robust evaluation: each example's results so far, and the runs that are left."""

from collections.abc import Sequence

import numpy as np

from piat_jax.evaluation.journal import Record


class AttackState:
    """Flags of every attack and each example's first adversarial image, built only from records.

    It does not depend on the order of records, or on how runs were grouped into blocks.
    """

    def __init__(self, runs: Sequence[int], images: np.ndarray, logits: np.ndarray, labels: np.ndarray, *, alone: bool):
        """`runs`: runs per example of each attack; `alone`: attack examples even if another attack has broken them."""
        count, finite = len(labels), np.isfinite(logits).all(axis=1)
        self.alone = alone
        self.predictions = logits.argmax(axis=1).astype(np.int32)
        self.clean = finite & (self.predictions == labels)
        self.images = images
        self.distances = np.zeros(count, np.float32)
        self.done = [np.zeros((number, count), bool) for number in runs]
        self.refused = [np.zeros((number, count), bool) for number in runs]
        self.attempted, self.fooled = np.zeros((2, len(runs), count), bool)
        self.queries = np.zeros((len(runs), count), np.int64)
        self.seconds = np.zeros(len(runs))
        self.valid: list[list[np.ndarray]] = [[] for _ in runs]

    @property
    def robust(self) -> np.ndarray:
        """Which examples are robust so far, `[N]`."""
        return self.clean & ~self.fooled.any(axis=0)

    def pending(self, attack: int) -> np.ndarray:
        """Which runs of an attack are left to do, including refused ones, `[runs, N]`."""
        left = self.clean & ~self.fooled[attack] if self.alone else self.robust
        return (~self.done[attack] | self.refused[attack]) & left

    def next(self, attack: int, size: int) -> tuple[np.ndarray, bool]:
        """The next runs of an attack and their examples, `[R, 2]`, and whether to repeat them at full precision.

        All examples have their first run before any has its second, and all runs are done before any is repeated. So
        results do not depend on the grouping, and repeated runs fill few blocks.
        """
        pending = self.pending(attack)
        first = np.argwhere(pending & ~self.done[attack])
        return (first[:size], False) if len(first) else (np.argwhere(pending)[:size], True)

    def apply(self, record: Record) -> None:
        """Add the results of a block; of several successes at an example, the first run's counts."""
        attack = int(record.member)
        self.seconds[attack] += record.seconds
        self.valid[attack].append(record.valid)
        place = np.cumsum(record.fell) - 1
        for row, (run, example) in enumerate(zip(record.tasks, record.examples)):
            self.done[attack][run, example] = True
            self.refused[attack][run, example] = len(record.refused) and record.refused[row]
            if self.fooled[attack, example]:
                continue
            self.attempted[attack, example] = True
            self.queries[attack, example] += record.queries[row]
            if not record.fell[row]:
                continue
            if not self.fooled[:, example].any():
                self.images[example] = record.images[place[row]]
                self.predictions[example] = record.predictions[place[row]]
                self.distances[example] = record.distances[place[row]]
            self.fooled[attack, example] = True
