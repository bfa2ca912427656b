"""Layers under a budget of layers: how many, and which places."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hf_prune import InfeasibleBudgetError, PruningError
from hf_prune.budget import kept_layer_count, lowest_places, removed_places


@pytest.mark.parametrize(
    ("layers", "count"), [(0.5, 6), (0.3, 3), (0.25, 3), (0.99, 11), (1.0, 12), (1, 1), (7, 7), (12, 12)]
)
def test_a_float_is_a_fraction_and_an_integer_a_number(layers: float, count: int) -> None:
    assert kept_layer_count(12, layers) == count


def test_layers_that_are_too_few_or_too_many() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"layers=0\.1 of 6 layers is less than one") as caught:
        kept_layer_count(6, 0.1)
    assert kept_layer_count(6, caught.value.smallest) == 1
    with pytest.raises(InfeasibleBudgetError, match=r"give at least 0\.3334") as caught:
        kept_layer_count(3, 0.3333)
    assert kept_layer_count(3, 0.3334) == kept_layer_count(3, caught.value.smallest) == 1
    with pytest.raises(PruningError, match="layers=7 is more than the 6 layers"):
        kept_layer_count(6, 7)


@pytest.mark.parametrize(
    ("which", "removed", "places"),
    [
        ("top", 4, [8, 9, 10, 11]),
        ("bottom", 4, [0, 1, 2, 3]),
        ("middle", 4, [4, 5, 6, 7]),
        ("middle", 3, [5, 6, 7]),  # five stay below and four above
        ("alternate", 6, [1, 3, 5, 7, 9, 11]),
        ("alternate", 4, [2, 5, 8, 11]),
        ("alternate", 8, [1, 2, 4, 5, 7, 8, 10, 11]),
        ("alternate", 1, [11]),
    ],
)
def test_places(which: str, removed: int, places: list[int]) -> None:
    assert removed_places(12, removed, which) == places


@pytest.mark.parametrize("which", ["top", "bottom", "middle", "alternate"])
@pytest.mark.parametrize("total", [1, 2, 5, 7, 12])
def test_as_many_different_places_as_asked_for(which: str, total: int) -> None:
    for removed in range(1, total + 1):
        places = removed_places(total, removed, which)
        assert len(set(places)) == removed
        assert places == sorted(places)
        assert places[0] >= 0
        assert places[-1] < total


def test_alternate_layers_are_spread_evenly() -> None:
    for total in range(2, 13):
        for removed in range(1, total):
            places = [-1, *removed_places(total, removed, "alternate")]
            gaps = [after - before for before, after in pairwise(places)]
            assert max(gaps) - min(gaps) <= 1


def test_lowest_places() -> None:
    assert lowest_places([0.3, 0.1, 0.3, 0.2], 2) == [1, 3]
    assert lowest_places([0.3, 0.1, 0.3, 0.2], 3) == [0, 1, 3]
