"""AutoAttack under several norms, and the examples that are robust under all of them."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.evaluation.autoattack import AttackProgress, AutoAttack
from piat_jax.evaluation.classes import WorstClass, class_accuracies, find_worst_class
from piat_jax.evaluation.robustness import NORMS, Finding, Robustness

UNION = ("linf", "l2", "l1")
"""The norms of the union, in the order of attacks and output."""
UNION_EPS = (8 / 255, 0.5, 12.0)
"""Their radii on CIFAR-10 in E-AT, Croce & Hein (2022), arXiv:2105.12508."""


@dataclasses.dataclass(frozen=True)
class UnionRobustness:
    """AutoAttack's results for N examples under each norm, and for the union, which counts an example broken by any."""

    parts: Mapping[str, Robustness]  # by norm

    def __post_init__(self) -> None:
        digests = {str(part.settings.get("data")) for part in self.parts.values()}
        if len(digests) != 1:
            raise InputError("parts are of different examples; give one or more results of the same images and labels")

    @property
    def labels(self) -> np.ndarray:
        """The labels, `[N]` int32."""
        return next(iter(self.parts.values())).labels

    @property
    def clean(self) -> np.ndarray:
        """Whether each clean image is classified correctly, `[N]` bool."""
        return np.all([part.clean for part in self.parts.values()], axis=0)

    @property
    def robust(self) -> np.ndarray:
        """Whether each example is robust under every norm, `[N]` bool."""
        return np.all([part.robust for part in self.parts.values()], axis=0)

    @property
    def accuracy(self) -> float:
        """The share of all examples that is robust under every norm."""
        return float(self.robust.mean())

    @property
    def accuracy_under(self) -> dict[str, float]:
        """The share that is robust under each norm."""
        return {norm: part.accuracy for norm, part in self.parts.items()}

    @property
    def broken_only(self) -> dict[str, int]:
        """For each norm, the number of examples that it breaks and no other norm does."""
        broken = {norm: part.clean & ~part.robust for norm, part in self.parts.items()}
        total = np.sum(list(broken.values()), axis=0)
        return {norm: int((flags & (total == 1)).sum()) for norm, flags in broken.items()}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings under any norm, each once."""
        return tuple(dict.fromkeys(finding for part in self.parts.values() for finding in part.findings))

    @property
    def worst_class(self) -> WorstClass:
        """The class with the lowest robust accuracy under every norm, and this accuracy."""
        return find_worst_class(class_accuracies(self.robust, self.labels))

    def __str__(self) -> str:
        rows = [("norm", "eps", "robust", "worst class", "broken by it alone")]
        rows.append(("clean", "", f"{100 * self.clean.mean():.2f}%", "", ""))
        for norm, part in self.parts.items():
            eps, worst = part.settings["eps"], part.worst_class
            radius = f"{255 * eps:.4g}/255" if norm == "linf" else f"{eps:.6g}"
            told = f"{worst.label}: {100 * worst.accuracy:.2f}%"
            rows.append((NORMS[norm], radius, f"{100 * part.accuracy:.2f}%", told, str(self.broken_only[norm])))
        worst = self.worst_class
        told = f"{worst.label}: {100 * worst.accuracy:.2f}%"
        rows.append(("union", "", f"{100 * self.accuracy:.2f}%", told, ""))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [f"{len(self.labels)} examples, robust under every norm:"]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAttackUnion:
    """AutoAttack in L-inf, L2 and L1: `mean_i [no x' in the union of the three balls of x_i is misclassified]`.

    Each norm is evaluated separately, on all examples: examples broken under one norm are attacked under the others
    too, so the accuracy under each norm is AutoAttack's own.

    Attributes:
      eps: the radii in "linf", "l2" and "l1", in pixel units.
      settings: all other settings; its eps and norm are ignored.

    Raises:
      InputError: not three radii, or one out of range.

    Source: Croce & Hein (2022), arXiv:2105.12508; "union" as in Tramer & Boneh (2019), arXiv:1904.13000.

    >>> import jax.numpy as jnp
    >>> logits_fn = lambda x: jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.4)], axis=1)
    >>> images = np.linspace(0.3, 0.9, 8, dtype=np.float32).reshape(8, 1, 1, 1) * np.ones((8, 4, 4, 1), np.float32)
    >>> quick = AutoAttack(steps=10, queries=20, targets=1, restarts=1)
    >>> union = AutoAttackUnion(eps=(0.2, 0.5, 1.0), settings=quick)
    >>> found = union.run(logits_fn, images, np.zeros(8, int))
    >>> found.accuracy_under, found.accuracy
    ({'linf': 0.5, 'l2': 0.625, 'l1': 0.75}, 0.5)
    """

    eps: tuple[float, ...] = UNION_EPS
    settings: AutoAttack = dataclasses.field(default_factory=AutoAttack)

    def __post_init__(self) -> None:
        if len(self.eps) != len(UNION):
            raise InputError(f"eps={self.eps} has {len(self.eps)} radii; give one for each of {', '.join(UNION)}")
        self.parts()

    def parts(self) -> dict[str, AutoAttack]:
        """The evaluation under each norm."""
        return {
            norm: dataclasses.replace(self.settings, norm=norm, eps=float(eps)) for norm, eps in zip(UNION, self.eps)
        }

    def run(
        self,
        logits_fn: Callable[..., Any],
        images: Any,
        labels: Any,
        *,
        folder: str | Path | None = None,
        report: Callable[[AttackProgress], None] = lambda progress: None,
        **options: Any,
    ) -> UnionRobustness:
        """Attack `images` under each norm; arguments as in `AutoAttack.run`, with a subfolder of `folder` per norm."""
        found = {}
        for norm, part in self.parts().items():
            where = None if folder is None else Path(folder) / norm
            found[norm] = part.run(logits_fn, images, labels, folder=where, report=report, **options)
        return UnionRobustness(found)
