"""What a paper says, as the sign of a paired difference over seeds, and whether it holds."""

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
    border = -MARGIN if claim.kind == "kept" else 0.0
    return "holds" if low > border else "does not hold" if high < border else "not decided"
