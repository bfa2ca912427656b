"""The piece-wise linear fit, against planted tables and the loop over thresholds that defines it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_prune.budget.latency_fit import LatencyFit, fit_latency
from hf_prune.errors import PruningError


def planted_table(units: int, threshold: int, constant: float, slope: float) -> np.ndarray:
    widths = np.arange(units + 1)
    table = constant + slope * np.maximum(widths - threshold, 0)
    table[0] = 0.0
    return table


def fit_by_loop(table: np.ndarray) -> tuple[list[float], list[LatencyFit]]:
    """For every threshold its least-squares fit and that fit's squared error."""
    errors, fits = [], []
    for threshold in range(1, len(table)):
        constant = sum(table[1 : threshold + 1]) / threshold
        above = [(width - threshold, table[width] - constant) for width in range(threshold + 1, len(table))]
        slope = max(0.0, sum(x * y for x, y in above) / sum(x * x for x, _ in above)) if above else 0.0
        fits.append(LatencyFit(threshold, constant, slope))
        errors.append(sum((table[width] - fits[-1].seconds(width)) ** 2 for width in range(1, len(table))))
    return errors, fits


@pytest.mark.parametrize(("units", "threshold"), [(12, 1), (12, 4), (12, 11), (3072, 1), (3072, 700), (3072, 3000)])
@pytest.mark.parametrize(("constant", "slope"), [(3e-4, 2e-6), (3e-4, 1e-4), (0.5, 1e-5), (2.0, 40.0)])
def test_recovers_a_planted_table(units: int, threshold: int, constant: float, slope: float) -> None:
    fit = fit_latency(planted_table(units, threshold, constant, slope))
    assert fit.threshold == threshold
    assert fit.constant == pytest.approx(constant, rel=1e-12)
    assert fit.slope == pytest.approx(slope, rel=1e-9)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.floats(1e-5, 1e-2), min_size=1, max_size=24))
@example([3e-4] * 8)
@example([1e-3, 9e-4, 8e-4, 7e-4])
def test_equals_the_loop_over_thresholds(entries: list[float]) -> None:
    table = np.array([0.0, *entries])
    errors, fits = fit_by_loop(table)
    fit = fit_latency(table)
    rounding = 1e-13 * float(np.square(table).sum())
    assert errors[fit.threshold - 1] <= min(errors) + rounding
    same = fits[fit.threshold - 1]
    assert fit.constant == pytest.approx(same.constant, rel=1e-12)
    assert fit.slope == pytest.approx(same.slope, rel=1e-9, abs=1e-15)


def test_noisy_table_has_the_threshold_of_the_loop() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        table = planted_table(200, int(generator.integers(1, 200)), 1e-3, 2e-5)
        table[1:] *= 1 + 0.05 * generator.standard_normal(200)
        errors, _ = fit_by_loop(table)
        assert fit_latency(table).threshold == int(np.argmin(errors)) + 1


def test_a_flat_table_has_the_smallest_threshold_and_no_slope() -> None:
    assert fit_latency([0.0] + [0.25] * 9) == LatencyFit(1, 0.25, 0.0)
    assert fit_latency([0.0] * 5) == LatencyFit(1, 0.0, 0.0)


def test_a_falling_table_has_no_slope() -> None:
    fit = fit_latency([0.0, 4.0, 3.0, 2.0, 1.0])
    assert fit.slope == 0.0


def test_the_largest_scale_does_not_matter() -> None:
    table = planted_table(64, 20, 1e6, 1e5)
    assert fit_latency(table).threshold == fit_latency(table * 1e-12).threshold == 20


def test_blocks_of_one_and_no_unit() -> None:
    assert fit_latency([0.0, 2.0]) == LatencyFit(1, 2.0, 0.0)
    assert fit_latency([0.0]) == LatencyFit(0, 0.0, 0.0)


def test_approximated_seconds() -> None:
    fit = LatencyFit(2, 3.0, 0.5)
    assert [fit.seconds(units) for units in range(5)] == [0.0, 3.0, 3.0, 3.5, 4.0]


@pytest.mark.parametrize("table", [[], [0.0, float("nan")], [0.0, float("inf"), 1.0], [[0.0, 1.0]]])
def test_invalid_tables(table: list) -> None:
    with pytest.raises(PruningError, match="latency table"):
        fit_latency(table)
