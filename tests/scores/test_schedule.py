from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hf_prune.scores import PruningSchedule, cubic_sparsity


def test_cubic_schedule_by_hand() -> None:
    """Zhu and Gupta's formula at the quarters, s = s_f + (s_i − s_f)(1 − p)³."""
    values = [cubic_sparsity(step, 100, 500, 0.0, 0.8) for step in (0, 100, 200, 300, 400, 500, 900)]
    expected = [0, 0, 0.8 - 0.8 * 27 / 64, 0.8 - 0.8 / 8, 0.8 - 0.8 / 64, 0.8, 0.8]
    assert all(math.isclose(value, right, abs_tol=1e-12) for value, right in zip(values, expected, strict=True))


def test_schedule_without_length_jumps() -> None:
    assert [cubic_sparsity(step, 7, 7, 0.1, 0.9) for step in (6, 7, 8)] == [0.1, 0.9, 0.9]


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 40), st.floats(0, 0.5), st.floats(0.5, 0.99))
def test_schedule_rises_to_its_end_and_is_made_anew_on_time(
    start: int, length: int, every: int, initial: float, final: float
) -> None:
    schedule = PruningSchedule(start, start + length, every, initial, final)
    values = [schedule.value(step) for step in range(start + length + 3)]
    assert all(one <= other + 1e-12 for one, other in pairwise(values))
    assert values[-1] == final
    due = [step for step in range(start + length + 2 * every + 1) if schedule.due(step)]
    wanted = {step for step in range(start, start + length + 2 * every + 1) if (step - start) % every == 0}
    assert set(due) == wanted | {start + length}


@given(st.integers(0, 50), st.integers(0, 100), st.integers(1, 20), st.integers(0, 160))
def test_last_value_is_the_one_of_the_last_update(start: int, length: int, every: int, steps: int) -> None:
    schedule = PruningSchedule(start, start + length, every, 0.0, 0.9)
    value = 0.0
    for step in range(steps + 1):
        if schedule.due(step):
            value = schedule.value(step)
    assert math.isclose(schedule.last_value(steps), value, abs_tol=1e-12)
    assert schedule.reached(steps) == (steps >= start + length)
