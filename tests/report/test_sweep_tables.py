from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as some

from hf_prune.report.sweep_tables import pareto_front

POINTS = some.lists(some.tuples(some.integers(0, 4), some.integers(0, 4)), max_size=8)


@given(POINTS)
def test_the_front_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    """The definition in another form: whoever is on the front is the best of all that cost no more, and the cheapest
    of those that are as good."""
    expected = []
    for place, (cost, quality) in enumerate(points):
        best = max(value for price, value in points if price <= cost)
        cheapest = min(price for price, value in points if value >= quality)
        if (cost, quality) == (cheapest, best):
            expected.append(place)
    assert pareto_front(*zip(*points, strict=True)) == expected if points else pareto_front([], []) == []


def test_what_is_no_number_beats_nothing() -> None:
    assert pareto_front([0.5, 0.7], [math.nan, 0.1]) == [0, 1]
    assert pareto_front([0.5, 0.5], [math.nan, 0.1]) == [1]
