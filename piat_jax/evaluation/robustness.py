"""The result of a robust evaluation, per example."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from piat_jax.core.checks import InputError
from piat_jax.core.files import expanded, write_arrays, write_file, write_json
from piat_jax.evaluation.classes import WorstClass, class_accuracies, find_worst_class

JSON, ARRAYS, IMAGES = "result.json", "result.npz", "images.npy"
NORMS = {"linf": "L-inf", "l2": "L2", "l1": "L1"}


class Finding(NamedTuple):
    """A property of the network or the outcome that makes the result doubtful."""

    name: str
    message: str


@dataclasses.dataclass(frozen=True)
class Robustness:
    """Which of N examples are robust, and how the others were broken; A attacks ran one after the other.

    An attack runs on the examples that are still robust or, with `settings["individually"]`, on all examples with a
    correct clean image.
    """

    attacks: tuple[str, ...]
    labels: np.ndarray  # [N] int32
    clean: np.ndarray  # [N] bool, correct on the clean image
    attempted: np.ndarray  # [A, N] bool, whether the attack was run on the example
    fooled: np.ndarray  # [A, N] bool, whether it succeeded
    queries: np.ndarray  # [A, N] int64, forwards spent; a forward-and-backward counts as one
    images: np.ndarray  # [N, H, W, C] float32, adversarial if an attack succeeded, else clean; mapped if from a folder
    predictions: np.ndarray  # [N] int32, the predicted class of `images`
    distances: np.ndarray  # [N] float32, from `images` to the clean ones, in the attack's norm
    seconds: Mapping[str, float]  # time of each attack, including compilation
    findings: tuple[Finding, ...]
    settings: Mapping[str, Any]

    @property
    def robust(self) -> np.ndarray:
        """Whether each example is correct on the clean image and under every attack, `[N]` bool."""
        return self.clean & ~self.fooled.any(axis=0)

    @property
    def broken_by(self) -> np.ndarray:
        """The first attack to succeed, as an index into `attacks`, `[N]`; -1 if none did."""
        return np.where(self.fooled.any(axis=0), self.fooled.argmax(axis=0), -1)

    @property
    def accuracy(self) -> float:
        """The robust accuracy: the share of all examples that is robust."""
        return float(self.robust.mean())

    @property
    def clean_accuracy(self) -> float:
        """The share of all examples with a correct clean image."""
        return float(self.clean.mean())

    @property
    def worst_class(self) -> WorstClass:
        """The class with the lowest robust accuracy, and this accuracy."""
        return find_worst_class(class_accuracies(self.robust, self.labels))

    @property
    def accuracy_after(self) -> dict[str, float]:
        """By attack, the share of examples that is correct on the clean image, under this attack and all before it."""
        return {
            name: float((self.clean & ~self.fooled[: number + 1].any(axis=0)).mean())
            for number, name in enumerate(self.attacks)
        }

    @property
    def accuracy_under(self) -> dict[str, float]:
        """The accuracy under each attack alone, for attacks that ran on all examples with a correct clean image."""
        return {
            name: float((self.clean & ~fooled).mean())
            for name, attempted, fooled in zip(self.attacks, self.attempted, self.fooled)
            if (attempted == self.clean).all()
        }

    @property
    def max_norm(self) -> float:
        """The largest distance of an adversarial image."""
        return float(self.distances.max(initial=0.0))

    def __str__(self) -> str:
        settings, count = self.settings, len(self.labels)
        eps = f"{settings['eps']:.6g}"
        if settings["norm"] == "linf":
            eps += f" = {255 * settings['eps']:.4g}/255"
        after, under, total = self.accuracy_after, self.accuracy_under, 0.0
        header = ("attack", "on", "broken", "alone", "after", "queries", "seconds")
        rows = [("clean", str(count), str(int((~self.clean).sum())), "", f"{100 * self.clean_accuracy:.2f}%", "", "")]
        for number, name in enumerate(self.attacks):
            total += self.seconds[name]
            rows.append(
                (
                    name,
                    str(int(self.attempted[number].sum())),
                    str(int(self.fooled[number].sum())),
                    f"{100 * under[name]:.2f}%" if name in under else "",
                    f"{100 * after[name]:.2f}%",
                    f"{int(self.queries[number].sum()):,}",
                    f"{self.seconds[name]:.1f}",
                )
            )
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines = [f"{NORMS[settings['norm']]}, eps {eps}, {count} examples, seed {settings['seed']}"]
        for row in [header, *rows]:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
            lines.append("  ".join(cells).rstrip())
        worst = self.worst_class
        lines.append(f"worst class {worst.label}: {100 * worst.accuracy:.2f}%")
        lines.append(
            f"robust accuracy {100 * self.accuracy:.2f}%, largest distance {self.max_norm:.6g}, {total:.1f} seconds"
        )
        return "\n".join([*lines, *(f"warning: {finding.message}" for finding in self.findings)])

    def summary(self) -> dict[str, Any]:
        """The numbers to save as JSON, without arrays."""
        return {
            "robust_accuracy": self.accuracy,
            "clean_accuracy": self.clean_accuracy,
            "worst_class": self.worst_class._asdict(),
            "accuracy_after": self.accuracy_after,
            "accuracy_under": self.accuracy_under,
            "broken": {name: int(fooled.sum()) for name, fooled in zip(self.attacks, self.fooled)},
            "attempted": {name: int(attempted.sum()) for name, attempted in zip(self.attacks, self.attempted)},
            "queries": {name: int(queries.sum()) for name, queries in zip(self.attacks, self.queries)},
            "seconds": dict(self.seconds),
            "max_norm": self.max_norm,
            "num_examples": len(self.labels),
            "findings": [finding._asdict() for finding in self.findings],
            "settings": dict(self.settings),
            "attacks": list(self.attacks),
        }

    def save(self, folder: str | Path) -> None:
        """Write the numbers to result.json, the images to images.npy and the other arrays to result.npz.

        Each file is written atomically, and the JSON last.
        """
        folder = expanded(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in _ARRAYS}
        write_file(folder / IMAGES, lambda file: np.save(file, self.images))
        write_arrays(folder / ARRAYS, arrays | {"robust": self.robust, "broken_by": self.broken_by})
        write_json(folder / JSON, self.summary())

    @classmethod
    def load(cls, folder: str | Path) -> "Robustness":
        """Load a result that `save` wrote.

        Raises:
          InputError: the folder does not hold a result.
        """
        folder = expanded(folder)
        if not (folder / JSON).exists():
            raise InputError(f"folder={str(folder)!r} holds no {JSON}; give the folder of a finished evaluation")
        summary = json.loads((folder / JSON).read_text())
        with np.load(folder / ARRAYS, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in _ARRAYS}
            # Earlier versions stored the images in result.npz.
            images = stored["images"] if "images" in stored else read_images(folder)
        findings = tuple(Finding(**finding) for finding in summary["findings"])
        return cls(
            attacks=tuple(summary["attacks"]),
            seconds=summary["seconds"],
            findings=findings,
            settings=summary["settings"],
            images=images,
            **arrays,
        )


def read_images(folder: Path) -> np.ndarray:
    """The images of a result as a memory map, which reads them only when used."""
    return np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)


_ARRAYS = ("labels", "clean", "attempted", "fooled", "queries", "predictions", "distances")
