"""How a training is divided, against a list with the phase of every step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune import PruningError
from hf_prune.strategies.snip.iterations import Iterations, Place

SHARES = st.floats(0.01, 0.99)


def phases(steps: int, count: int, gated: float, measured: float) -> list[Place]:
    """Every step's place, iteration by iteration."""
    ends = [(index + 1) * steps // (count + 1) for index in range(count + 1)]
    found: list[Place] = []
    for iteration, end in enumerate(ends):
        length = end - len(found)
        closing = min(max(1, round(gated * length)), length - 1) if iteration else 0
        estimating = min(max(1, round(measured * length)), length - closing) if iteration < count else 0
        found += [Place(iteration, "gated")] * closing
        found += [Place(iteration, "open")] * (length - closing - estimating)
        found += [Place(iteration, "measured")] * estimating
    return found


@given(st.integers(1, 9), st.integers(0, 60), SHARES, SHARES)
def test_places_are_those_of_the_list(count: int, more: int, gated: float, measured: float) -> None:
    steps = 3 * (count + 1) + more
    iterations = Iterations(steps, count, gated, measured)
    assert [iterations.place(step) for step in range(steps)] == phases(steps, count, gated, measured)


@given(st.integers(1, 9), st.integers(0, 60), SHARES, SHARES)
def test_every_iteration_closes_gates_that_were_measured_and_retrains(
    count: int, more: int, gated: float, measured: float
) -> None:
    steps = 3 * (count + 1) + more
    iterations = Iterations(steps, count, gated, measured)
    places = [iterations.place(step) for step in range(steps)]
    for iteration in range(1, count + 1):
        first = places.index(Place(iteration, "gated"))
        assert places[first - 1] == Place(iteration - 1, "measured")
        assert places[iterations.start(iteration + 1) - 1].phase != "gated"


def test_a_plain_case() -> None:
    iterations = Iterations(24, 2, 0.5, 0.25)
    walk = "oooooommggggoommggggoooo"
    assert "".join(iterations.place(step).phase[0] for step in range(24)) == walk
    assert [iterations.place(step).iteration for step in (7, 8, 15, 16, 23)] == [0, 1, 1, 2, 2]
    assert iterations.place(24) == Place(2, "open")
    assert [iterations.ended(step) for step in (0, 15, 16, 23, 24)] == [0, 0, 1, 1, 2]


def test_too_short_a_training() -> None:
    assert Iterations(12, 3, 0.5, 0.25).place(11) == Place(3, "open")
    with pytest.raises(PruningError, match=r"iterations=3 take at least 12 .* has 11\. Train longer, or ask for fewer"):
        Iterations(11, 3, 0.5, 0.25)
