"""Accuracy under common corruptions: the mean, and for ImageNet-C the mean corruption error."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on ImageNet-C, the mean of the five severities: Hendrycks & Dietterich (2019), arXiv:1903.12261."""
IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class CorruptionAccuracy:
    """Accuracies under common corruptions; means use the paper's corruptions, extra ones are reported separately."""

    clean: float  # on the clean images, a fraction
    accuracy: Mapping[str, tuple[float, ...]]  # by corruption, at severities 1 to 5, fractions
    num_classes: int
    num_examples: int  # at each severity

    @property
    def of(self) -> dict[str, float]:
        """The mean over severities, by corruption."""
        return {name: float(np.mean(values)) for name, values in self.accuracy.items()}

    @property
    def mean(self) -> float:
        """The mean over the fifteen corruptions and five severities; NaN if one is missing."""
        return float(np.mean([self.of.get(name, np.nan) for name in ALEXNET]))

    @property
    def extra(self) -> float:
        """The mean over the extra corruptions; NaN if there are none."""
        values = [value for name, value in self.of.items() if name not in ALEXNET]
        return float(np.mean(values)) if values else float("nan")

    @property
    def is_normalised(self) -> bool:
        """Whether to divide errors by AlexNet's, which are known for ImageNet-C."""
        return self.num_classes == IMAGENET_CLASSES

    @property
    def mce(self) -> float:
        """The mean corruption error: `mean_c (1 - a_c) / e_c`, with e AlexNet's error on ImageNet-C, 1 on other data.

        >>> flat = {name: (0.5,) * 5 for name in ALEXNET}
        >>> round(CorruptionAccuracy(0.9, flat, 10, 100).mce, 3), round(CorruptionAccuracy(0.9, flat, 1000, 100).mce, 3)
        (0.5, 0.647)
        """
        divisors = ALEXNET if self.is_normalised else dict.fromkeys(ALEXNET, 1.0)
        return float(np.mean([(1.0 - self.of.get(name, np.nan)) / value for name, value in divisors.items()]))

    @property
    def by_severity(self) -> tuple[float, ...]:
        """The mean over the fifteen corruptions at each severity."""
        return tuple(np.mean([self.accuracy[name] for name in ALEXNET], axis=0).tolist())

    def summary(self) -> dict[str, Any]:
        """The numbers to save as JSON."""
        return {
            "clean": self.clean,
            "mean": self.mean,
            "mce": self.mce,
            "mce_is": "relative to AlexNet's error" if self.is_normalised else "the mean error, not normalised",
            "extra": None if np.isnan(self.extra) else self.extra,
            "num_examples": self.num_examples,
            "num_classes": self.num_classes,
            "accuracy": {name: list(values) for name, values in self.accuracy.items()},
        }

    def to_markdown(self) -> str:
        """A Markdown table by corruption and severity, in percent."""
        header = ["Corruption", *(f"{level}" for level in range(1, 6)), "Mean"]
        rows = [[name, *values, self.of[name]] for name, values in self.accuracy.items()]
        rows.insert(len(ALEXNET), ["mean of the above", *self.by_severity, self.mean])
        text = [[str(cell) if isinstance(cell, str) else f"{100 * cell:.2f}" for cell in row] for row in rows]
        widths = [max(4, *(len(row[i]) for row in [header, *text])) for i in range(len(header))]
        rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        lines = [
            [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
            for row in [header, rule, *text]
        ]
        divided = "relative to AlexNet's" if self.is_normalised else "the mean error, not normalised"
        extra = "" if np.isnan(self.extra) else f"; extra corruptions {100 * self.extra:.2f}"
        notes = (
            f"Accuracy (%) on {self.num_examples} images at each severity. Clean {100 * self.clean:.2f}, mean over the "
            f"fifteen corruptions {100 * self.mean:.2f}, mCE {100 * self.mce:.2f} ({divided}){extra}."
        )
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{notes}\n"
