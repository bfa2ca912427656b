"""Latency as a function of width, simplified: a constant overhead, then a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import PruningError


@dataclass(frozen=True)
class LatencyFit:
    """The latency of a block that keeps n units: 0 if n = 0, `constant` up to `threshold`, then rising by `slope`.

    Attributes:
        threshold: T, the number of units up to which another unit costs no time.
        constant: c, seconds.
        slope: a, seconds per unit above the threshold, at least 0.
    """

    threshold: int
    constant: float
    slope: float

    def seconds(self, units: int) -> float:
        """The approximated latency with `units` kept."""
        return self.constant + self.slope * max(units - self.threshold, 0) if units else 0.0


def fit_latency(table: Sequence[float] | np.ndarray) -> LatencyFit:
    """The piece-wise linear approximation of a latency table with the least squared error (Kwon et al. 2022, §4.1).

    For every threshold T the constant is the mean of the first T entries, and the line through (T, constant) has the
    least-squares slope over the rest, or 0 where that is negative.  Linear in the length of the table.  Of thresholds
    that fit equally well, up to rounding, the smallest.

    Args:
        table: [units + 1] seconds with i units kept; entry 0 is ignored, as no unit takes no time.

    Raises:
        PruningError: if the table is empty or holds NaN or infinity.
    """
    seconds = np.asarray(table, dtype=np.float64)
    if seconds.ndim != 1 or not len(seconds) or not np.isfinite(seconds[1:]).all():
        raise PruningError(f"a latency table must be a non-empty list of finite numbers, got {table!r}")
    if len(seconds) == 1:
        return LatencyFit(0, 0.0, 0.0)
    errors = _squared_errors(seconds[1:])
    # Rounding of the running sums; the errors are relative to the largest squared entry.
    rounding = len(seconds) * np.finfo(np.float64).eps
    threshold = int(np.flatnonzero(errors <= errors.min() + rounding)[0]) + 1
    constant = float(seconds[1 : threshold + 1].mean())
    above = seconds[threshold + 1 :] - constant
    steps = np.arange(1, len(above) + 1)
    slope = float(steps @ above / (steps @ steps)) if len(above) else 0.0
    return LatencyFit(threshold, constant, max(slope, 0.0))


def _squared_errors(seconds: np.ndarray) -> np.ndarray:
    """The squared error of the best fit at every threshold T = 1 … units, from running sums."""
    units = len(seconds)
    # Values around 0 and at most 1 keep the differences of running sums accurate.
    values = seconds - seconds.mean()
    values = values / max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
    thresholds = np.arange(1, units + 1)
    total, squares, moments = values.cumsum(), (values**2).cumsum(), (values * thresholds).cumsum()
    constants = total / thresholds
    rest = (units - thresholds).astype(np.float64)
    position_sum = rest * (rest + 1) / 2
    position_squares = rest * (rest + 1) * (2 * rest + 1) / 6
    rest_sum, rest_squares = total[-1] - total, squares[-1] - squares
    cross = moments[-1] - moments - thresholds * rest_sum - constants * position_sum
    slopes = np.maximum(np.divide(cross, position_squares, out=np.zeros(units), where=rest > 0), 0.0)
    flat_error = squares - thresholds * constants**2
    rest_error = rest_squares - 2 * constants * rest_sum + rest * constants**2
    return flat_error + rest_error - 2 * slopes * cross + slopes**2 * position_squares
