"""The search under known costs at its edges: ties, rounding, budgets and inputs that are out of range."""

from __future__ import annotations

import math

import pytest
import torch

from hf_prune.budget.search import search_flops, search_units
from hf_prune.errors import InfeasibleBudgetError, PruningError


def test_equal_scores_keep_the_earlier_block_and_the_lower_index() -> None:
    filters = torch.full((3, 5), 0.1)
    _, masks = search_flops([], filters, 1, 1, 7)
    assert [mask.tolist() for mask in masks] == [[True] * 5, [True, True, False, False, False], [False] * 5]


@pytest.mark.parametrize(("head_cost", "budget", "cheaper"), [(3, 4, [1, 0]), (5, 5, [0, 2])])
def test_equal_totals_prefer_the_cheaper_choice(head_cost: int, budget: int, cheaper: list[int]) -> None:
    # One head or two filters, both scoring 2; the filters cost 4 together.
    head_masks, filter_masks = search_flops([torch.tensor([2.0])], [torch.ones(2)], head_cost, 2, budget)
    assert [int(mask.sum()) for mask in (*head_masks, *filter_masks)] == cheaper


def test_what_is_left_of_the_budget_is_filled() -> None:
    # In order of score per cost the second block does not fit any more, but the third does.
    result = search_units([], torch.tensor([[16.0], [8.0], [3.0]]), 1, [4, 4, 3], 7)
    assert [mask.tolist() for mask in result.filter_masks] == [[True], [False], [True]]
    assert result.cost == 7


def test_a_dense_trifle_does_not_keep_out_a_large_score() -> None:
    result = search_units([], [torch.tensor([2.0]), torch.tensor([10.0])], 1, [1, 10], 10)
    assert [mask.tolist() for mask in result.filter_masks] == [[False], [True]]


def test_a_matrix_is_the_list_of_its_rows() -> None:
    heads, filters = torch.rand(3, 4), torch.rand(3, 20)
    from_matrix = search_flops(heads, filters, 10, 2, 90)
    from_list = search_flops(list(heads), list(filters), [10, 10, 10], torch.tensor([2, 2, 2]), 90.0)
    for masks, others in zip(from_matrix, from_list, strict=True):
        assert [mask.tolist() for mask in masks] == [mask.tolist() for mask in others]


def test_blocks_of_different_and_no_size() -> None:
    heads = [torch.tensor([3.0, 1.0]), torch.zeros(0)]
    filters = [torch.tensor([5.0]), torch.tensor([1.0, 2.0, 4.0])]
    head_masks, filter_masks = search_flops(heads, filters, 1, 1, 3)
    assert [mask.tolist() for mask in head_masks] == [[True, False], []]
    assert [mask.tolist() for mask in filter_masks] == [[True], [False, False, True]]


@pytest.mark.parametrize("budget", [12, 12.0, 13, math.inf])
def test_a_budget_of_at_least_the_dense_cost_keeps_everything(budget: float) -> None:
    head_masks, filter_masks = search_flops([torch.zeros(2)], [torch.zeros(4)], 2, 2, budget)
    assert all(bool(mask.all()) for mask in (*head_masks, *filter_masks))


def test_the_dense_cost_may_have_been_rounded() -> None:
    # Ten times the float 0.1 is a little more than the float 1.0 in exact arithmetic.
    _, (mask,) = search_flops([], [torch.rand(10)], 1, 0.1, 10 * 0.1)
    assert mask.all()
    _, (mask,) = search_flops([], [torch.rand(10)], 1, 0.1, 0.3)
    assert int(mask.sum()) == 2


def test_a_budget_below_every_unit_keeps_nothing() -> None:
    head_masks, filter_masks = search_flops([torch.ones(2)], [torch.ones(3)], 10, 4, 3)
    assert not any(bool(mask.any()) for mask in (*head_masks, *filter_masks))


def test_free_units_are_kept() -> None:
    head_masks, filter_masks = search_flops([torch.ones(3)], [torch.ones(3)], 0, 4, 4)
    assert head_masks[0].all()
    assert int(filter_masks[0].sum()) == 1


def test_large_integer_costs_are_exact() -> None:
    cost = 2**62 + 1  # above the integers that float64 tells apart
    for budget, kept in ((3 * cost, 3), (3 * cost - 1, 2)):
        _, (mask,) = search_flops([], [torch.rand(5)], 1, cost, budget)
        assert int(mask.sum()) == kept


def test_the_smallest_reachable_value_is_reachable() -> None:
    filters = [torch.rand(7), torch.rand(7)]
    with pytest.raises(InfeasibleBudgetError, match="raise the budget") as caught:
        search_units([], filters, 1, [0.1, 0.7], 0.05, minimum_filters=[3, 1])
    smallest = caught.value.smallest
    assert smallest == pytest.approx(1.0)
    result = search_units([], filters, 1, [0.1, 0.7], smallest, minimum_filters=[3, 1])
    assert [int(mask.sum()) for mask in result.filter_masks] == [3, 1]


@pytest.mark.parametrize("budget", [0, -1, float("nan"), "0.5", None])
def test_invalid_budgets(budget: object) -> None:
    with pytest.raises(PruningError, match="budget must be a number above 0"):
        search_flops([torch.ones(2)], [torch.ones(2)], 1, 1, budget)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (-1, "cost of a filter must be finite and not negative, got -1"),
        (float("nan"), "cost of a filter must be finite"),
        ([1, float("inf")], "cost of a filter in block 1"),
        ([1], "1 filter costs for 2 blocks"),
        (["1", 2], "must be a number, got '1'"),
    ],
)
def test_invalid_costs(cost: object, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        search_flops([torch.ones(2)], [torch.ones(2), torch.ones(2)], 1, cost, 3)


def test_invalid_scores_name_the_block() -> None:
    with pytest.raises(PruningError, match="head scores of block 1"):
        search_flops(torch.tensor([[1.0], [float("nan")]]), [torch.ones(2)], 1, 1, 3)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="round_to"):
        search_units([torch.ones(2)], [torch.ones(2)], 1, 1, 3, round_to=2)  # type: ignore[call-arg]


def test_rounding_leaves_no_gap_where_the_choice_is_optimal() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        result = search_units(torch.rand(3, 7, generator=generator), torch.rand(3, 50, generator=generator), 9, 2, 250)
        assert result.gap == 0
