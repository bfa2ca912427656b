"""Costs as whole numbers: exact for every float, and rounded only towards safety."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.budget.exact_costs import CostUnit, costs_per_block, read_number
from hf_prune.errors import PruningError

numbers = st.lists(st.floats(1e-300, 1e300) | st.integers(0, 10**25), min_size=1, max_size=6)


@given(numbers)
def test_whole_numbers_add_up_exactly(values: list) -> None:
    unit = CostUnit.of(values)
    total = sum(unit.whole(value) for value in values)
    assert Fraction(total, unit.denominator) == sum(Fraction(value) for value in values)


@given(numbers)
def test_asking_for_a_stated_cost_affords_it(values: list) -> None:
    unit = CostUnit.of(values)
    total = sum(unit.whole(value) for value in values)
    assert unit.whole(unit.number_above(total)) >= total


def test_a_stated_cost_is_never_rounded_down() -> None:
    unit = CostUnit.of([1.0, 2.0**-60])
    total = unit.whole(1.0) + unit.whole(2.0**-60)
    assert unit.number(total) == 1.0
    assert unit.number_above(total) == 1.0 + 2.0**-52


def test_integers_stay_integers() -> None:
    unit = CostUnit.of([3, 10**20])
    assert unit.number(unit.whole(10**20)) == 10**20
    assert unit.whole(2.75) == 2


@pytest.mark.parametrize("value", [7, 7.0, np.int64(7), np.float32(7), torch.tensor(7), torch.tensor(7.0)])
def test_one_cost_serves_all_blocks(value: object) -> None:
    assert costs_per_block(value, 3, "head") == [7, 7, 7]


@pytest.mark.parametrize("values", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), torch.tensor([1, 2.5])])
def test_one_cost_per_block(values: object) -> None:
    assert costs_per_block(values, 2, "head") == [1, 2.5]


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), -1])
def test_what_is_no_cost(value: object) -> None:
    with pytest.raises(PruningError, match="the cost of a head"):
        read_number(value, "the cost of a head")
