"""A paper's claims as signs of paired differences over seeds, and whether they hold."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MARGIN = 1.0  # percentage points that "kept" may lose


class Interval(NamedTuple):
    """A mean over seeds and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """As it is printed.

        >>> Interval(1.0, -0.5, 2.5).text(), Interval(1.0, -np.inf, np.inf).text(digits=1)
        ('1.00 [-0.50, 2.50]', '1.0 (one seed)')
        """
        bounds = f"[{self.low:.{digits}f}, {self.high:.{digits}f}]" if np.isfinite(self.low) else "(one seed)"
        return f"{self.mean:.{digits}f} {bounds}"


class Claim(NamedTuple):
    """A statement of a paper as the sign of a difference `method - other` of a measure."""

    text: str
    method: str
    other: str
    measure: str
    kind: str  # "lower", "higher" or "kept": not lower by MARGIN


def interval(values: np.ndarray) -> Interval:
    """Student's t interval of the mean of `values[S]`, of paired differences where these are given; of one, unbounded.

    >>> interval(np.array([1.0, 2.0, 3.0])).text()
    '2.00 [-0.48, 4.48]'
    """
    from scipy.stats import t

    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, -np.inf, np.inf)
    half = float(t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def verdict(claim: Claim, difference: Interval) -> str:
    """Whether the whole interval agrees with the claim, contradicts it, or neither.

    >>> steadier = Claim("PIAT oscillates less", "piat", "pgd_at", "deviation", "lower")
    >>> verdict(steadier, Interval(-1.0, -2.0, -0.5)), verdict(steadier, Interval(-1.0, -2.5, 0.5))
    ('holds', 'not decided')
    """
    low, high = (-difference.high, -difference.low) if claim.kind == "lower" else difference[1:]
    edge = border(claim.kind)
    return "holds" if low > edge else "does not hold" if high < edge else "not decided"


def border(kind: str) -> float:
    """The difference at which a claim turns from false to true: 0, or `-MARGIN` for what is said to be kept."""
    return -MARGIN if kind == "kept" else 0.0


def p_value(difference: Interval, seeds: int, edge: float = 0.0) -> float | None:
    """The two-sided p of Student's t test that the mean is `edge`, from its 95 % interval; None of one seed.

    >>> round(p_value(interval(np.array([1.0, 2.0, 3.0])), 3), 4), p_value(Interval(1.0, -np.inf, np.inf), 1)
    (0.0742, None)
    """
    from scipy.stats import t

    if seeds < 2 or not np.isfinite(difference.low):
        return None
    error = (difference.high - difference.low) / (2 * t.ppf(0.975, seeds - 1))
    if error == 0:
        return float(difference.mean == edge)
    return float(2 * t.sf(abs(difference.mean - edge) / error, seeds - 1))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values: below 0.05 in all, the chance of one false rejection or more is below 0.05.

    `max over j <= i of min(1, (m - j) p_(j))` for the i-th smallest of m, counted from 0. None stays None, and is not
    counted.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    order = sorted((index for index, value in enumerate(values) if value is not None), key=lambda i: values[i] or 0.0)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * (values[index] or 0.0)))
        adjusted[index] = highest
    return adjusted
