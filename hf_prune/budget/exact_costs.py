"""Costs as whole numbers, so that "never above the budget" is decided without rounding.

Every float is a whole number divided by a power of two.  Brought to one denominator, costs of any size add up
exactly in Python's integers, be they FLOPs, parameters or seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import PruningError

Number = int | float


@dataclass(frozen=True)
class CostUnit:
    """The unit in which costs are whole numbers: one `denominator`-th of the unit of the budget."""

    denominator: int

    @classmethod
    def of(cls, numbers: Iterable[Number]) -> CostUnit:
        """The coarsest unit in which all `numbers` are whole."""
        return cls(math.lcm(*{number.as_integer_ratio()[1] for number in numbers}))

    def whole(self, number: Number) -> int:
        """`number` in this unit, rounded down where it is not whole (exact for the numbers the unit was made of)."""
        numerator, denominator = number.as_integer_ratio()
        return numerator * self.denominator // denominator

    def number(self, whole: int) -> Number:
        """A cost in the unit of the budget, rounded to the nearest float if it is not an integer."""
        return whole if self.denominator == 1 else whole / self.denominator

    def number_above(self, whole: int) -> Number:
        """As `number`, but never rounded down: asking for this value as a budget succeeds."""
        number = self.number(whole)
        return math.nextafter(number, math.inf) if Fraction(number) * self.denominator < whole else number


def read_number(value: Any, name: str) -> Number:
    """A number, NumPy scalar or 0-d tensor as a Python number; `PruningError` unless finite and not negative."""
    number = value.item() if isinstance(value, Tensor | np.generic) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise PruningError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(number) or number < 0:
        raise PruningError(f"{name} must be finite and not negative, got {number}")
    return number


def read_budget(budget: Any) -> Number:
    """The budget as a Python number; `PruningError` unless it is above 0 (infinity means no limit)."""
    number = budget.item() if isinstance(budget, Tensor | np.generic) else budget
    if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
        raise PruningError(f"the budget must be a number above 0, in the unit of the costs, got {budget!r}")
    return number


def is_number(value: Any) -> bool:
    """Whether `value` is a single number rather than a sequence of them."""
    return isinstance(value, int | float | np.generic) or (isinstance(value, Tensor) and value.dim() == 0)


def costs_per_block(cost: Any, blocks: int, kind: str) -> list[Number]:
    """The cost of one unit in every block, from one number or one per block.

    Raises:
        PruningError: if the length is not the number of blocks, or a cost is negative, NaN or infinite.
    """
    if is_number(cost):
        return [read_number(cost, f"the cost of a {kind}")] * blocks
    costs: Sequence[Any] = list(cost)
    if len(costs) != blocks:
        raise PruningError(f"{len(costs)} {kind} costs for {blocks} blocks; give a number or one cost per block")
    return [read_number(value, f"the cost of a {kind} in block {index}") for index, value in enumerate(costs)]
