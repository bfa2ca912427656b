"""95 % confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and the half-width of its interval; the half-width of a single value is not known."""

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Student's t interval of the mean of independent values."""
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, None)
        quantile = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
        return cls(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.half_width is None else f"{self.mean:.2f} ± {self.half_width:.2f}"


def binomial_half_width(share: float, count: int) -> float:
    """Half-width of the normal interval of a share that was found in `count` independent rows."""
    return float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(share * (1 - share) / count)
