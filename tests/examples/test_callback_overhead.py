"""The arithmetic of the overhead's benchmark."""

from __future__ import annotations

import pytest
from callback_overhead import PERIOD, PLAIN, period_means, ratios, table, update_steps

# A first period that warms up, then two periods of steps 1 s long but for the last of each, which makes masks anew.
PERIODIC = [9.0] * PERIOD + ([1.0] * (PERIOD - 1) + [3.0]) * 2


def test_the_first_period_does_not_count() -> None:
    assert period_means(PERIODIC) == pytest.approx([1.2, 1.2])


def test_steps_that_make_masks_anew_are_told_apart() -> None:
    updating, others = update_steps(PERIODIC, PERIOD)
    assert (updating, others) == ([3.0] * 2, [1.0] * 18)
    assert update_steps(PERIODIC, 1) == (PERIODIC[PERIOD:], [])
    assert update_steps(PERIODIC, None) == ([], PERIODIC[PERIOD:])


def test_ratios_are_those_of_a_round() -> None:
    slow = [2 * value for value in PERIODIC]
    flat = [1.0] * len(PERIODIC)
    rounds = [
        {PLAIN: flat, "magnitude": PERIODIC, "movement": slow},
        {PLAIN: [3.0] * len(PERIODIC), "magnitude": [3.06] * len(PERIODIC), "movement": [6.0] * len(PERIODIC)},
        {PLAIN: flat, "magnitude": flat, "movement": flat},
    ]
    assert ratios(rounds, "magnitude") == pytest.approx([1.2, 1.02, 1.0])
    lines = {line.split("|")[1].strip(): line for line in table(rounds).splitlines()[2:]}
    assert "1.020" in lines["magnitude"]
    assert lines["magnitude"].rstrip("| ").endswith("yes")
    assert "2.000" in lines["movement"]
    assert lines["movement"].rstrip("| ").endswith("no")
