"""Which layers of a list stay where the budget is a number of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import InfeasibleBudgetError, PruningError
from .head_counts import head_count
from .rounding import rounded_up

PLACES = ("top", "bottom", "alternate", "middle")


def kept_layer_count(total: int, layers: float) -> int:
    """How many of `total` layers stay: a fraction (a float) is rounded down, a whole number is the number itself.

    Raises:
        InfeasibleBudgetError: a fraction that leaves none; at least one layer has to stay.
        PruningError: a number of more layers than there are.
    """
    if isinstance(layers, int):
        if layers > total:
            raise PruningError(f"layers={layers} is more than the {total} layers that there are to choose from.")
        return layers
    keep = head_count(total, layers)
    if not keep:
        raise InfeasibleBudgetError(
            f"layers={layers:g} of {total} layers is less than one, and one has to stay: give at least"
            f" {rounded_up(1 / total)}.",
            1 / total,
        )
    return keep


def removed_places(total: int, removed: int, which: str) -> list[int]:
    """The places from 0 of the layers that go by their place alone (Sajjad et al. 2023, section 3).

    Args:
        total: layers in the list.
        removed: how many of them go.
        which: "top" (the last ones, next to the output), "bottom" (the first ones), "middle" (the same number stays at
            either end, the odd one at the bottom), or "alternate": spread evenly, every second one where half of them
            go, every third where a third does, and so on, the last layer with them (Fan et al. 2020, section 3.2).
    """
    if which == "top":
        return list(range(total - removed, total))
    if which == "bottom":
        return list(range(removed))
    if which == "middle":
        start = math.ceil((total - removed) / 2)
        return list(range(start, start + removed))
    return [math.ceil((number + 1) * total / removed) - 1 for number in range(removed)]


def lowest_places(scores: Sequence[float], removed: int) -> list[int]:
    """The places of the lowest scores, in ascending order; of equal ones the first."""
    return sorted(sorted(range(len(scores)), key=lambda place: scores[place])[:removed])
