"""The search under known costs, against brute force over subsets, a mixed-integer program and its own bound."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from hf_prune.budget.search import SearchResult, search_flops, search_units
from hf_prune.errors import InfeasibleBudgetError

few_heads = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=3), min_size=1, max_size=3)
few_filters = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=4), min_size=1, max_size=3)
fractions = st.floats(0.001, 1.2)


def as_tensors(blocks: list[list[int]]) -> list[torch.Tensor]:
    return [torch.tensor(block, dtype=torch.float32) for block in blocks]


def per_unit(values: list, blocks: list[list[int]]) -> list:
    return [value for value, block in zip(values, blocks, strict=True) for _ in block]


def all_subsets(scores: list[int], costs: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Score and cost of every subset of units."""
    subsets = np.array(list(itertools.product((0, 1), repeat=len(scores))), dtype=np.int64)
    return subsets @ np.array(scores), subsets @ np.array(costs)


def best_of_all_subsets(heads: list, filters: list, head_costs: list, filter_costs: list, budget: float) -> int:
    """The highest score of any subset of all units that costs at most the budget."""
    head_scores, head_prices = all_subsets(list(itertools.chain(*heads)), per_unit(head_costs, heads))
    scores, prices = all_subsets(list(itertools.chain(*filters)), per_unit(filter_costs, filters))
    order = np.argsort(prices)
    best_up_to = np.maximum.accumulate(scores[order])
    affordable = np.searchsorted(prices[order], budget - head_prices, side="right")
    return max(int(s + best_up_to[n - 1]) for s, n in zip(head_scores, affordable, strict=True) if n)


def best_of_all_counts(blocks: list[list[int]], costs: list[int], counts: list[list[int]], budget: float) -> int:
    """The highest score when block i keeps its best units, as many as one of counts[i]; -1 if none fits."""
    best = -1
    for chosen in itertools.product(*counts):
        if sum(count * cost for count, cost in zip(chosen, costs, strict=True)) <= budget:
            best = max(best, sum(sum(sorted(b)[len(b) - n :]) for n, b in zip(chosen, blocks, strict=True)))
    return best


def exact_cost(masks: list[torch.Tensor], costs: list) -> Fraction:
    return sum((int(mask.sum()) * Fraction(cost) for mask, cost in zip(masks, costs, strict=True)), Fraction(0))


def kept_score(masks: list[torch.Tensor], scores: list[torch.Tensor]) -> float:
    return sum(float(score.double()[mask].sum()) for mask, score in zip(masks, scores, strict=True))


def check_result(result: SearchResult, heads: list, filters: list, budget: float) -> None:
    """What the result says of itself is what its masks say."""
    kept = kept_score(result.head_masks, as_tensors(heads)) + kept_score(result.filter_masks, as_tensors(filters))
    assert result.score_kept == kept
    assert result.cost <= budget
    assert result.gap >= 0


@settings(deadline=None, max_examples=150)
@given(few_heads, few_filters, st.integers(1, 30), st.integers(1, 12), fractions)
def test_equal_costs_give_the_optimum(
    heads: list, filters: list, head_cost: int, filter_cost: int, fraction: float
) -> None:
    dense = sum(map(len, heads)) * head_cost + sum(map(len, filters)) * filter_cost
    result = search_units(as_tensors(heads), as_tensors(filters), head_cost, filter_cost, fraction * dense)
    check_result(result, heads, filters, fraction * dense)
    costs = [head_cost] * len(heads), [filter_cost] * len(filters)
    assert result.cost == exact_cost(result.head_masks, costs[0]) + exact_cost(result.filter_masks, costs[1])
    assert result.score_kept == best_of_all_subsets(heads, filters, *costs, fraction * dense)
    assert result.gap == 0


@settings(deadline=None, max_examples=150)
@given(few_heads, few_filters, st.data(), fractions)
def test_costs_per_block_stay_within_the_gap(heads: list, filters: list, data: st.DataObject, fraction: float) -> None:
    head_costs = data.draw(st.lists(st.integers(1, 30), min_size=len(heads), max_size=len(heads)))
    filter_costs = data.draw(st.lists(st.integers(1, 12), min_size=len(filters), max_size=len(filters)))
    budget = fraction * (sum(per_unit(head_costs, heads)) + sum(per_unit(filter_costs, filters)))
    result = search_units(as_tensors(heads), as_tensors(filters), head_costs, filter_costs, budget)
    check_result(result, heads, filters, budget)
    optimum = best_of_all_subsets(heads, filters, head_costs, filter_costs, budget)
    assert optimum / 2 <= result.score_kept <= optimum <= result.upper_bound * (1 + 1e-9)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 4),
    st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=4),
    st.floats(1e-6, 1e6),
    st.floats(1e-9, 1.5),
    st.integers(0, 2**31),
)
def test_never_above_the_budget(blocks: int, costs: list[float], head_cost: float, fraction: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads, filters = torch.rand(blocks, 4, generator=generator), torch.rand(len(costs), 16, generator=generator)
    budget = fraction * (blocks * 4 * head_cost + 16 * sum(costs))
    head_masks, filter_masks = search_flops(heads, filters, head_cost, costs, budget)
    cost = exact_cost(head_masks, [head_cost] * blocks) + exact_cost(filter_masks, costs)
    everything = all(bool(mask.all()) for mask in (*head_masks, *filter_masks))
    assert cost <= Fraction(budget) or (everything and float(cost) <= budget)
    if fraction >= 1.001:
        assert everything


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.2, 0.5])
def test_a_budget_below_the_cost_of_all_heads(fraction: float) -> None:
    # Four layers of a 256-wide model at 128 tokens: all heads alone cost more than a tenth of the whole.
    head_cost, filter_cost = 4 * 128 * 256 * 64 + 2 * 128 * 128 * 64, 2 * 128 * 256
    generator = torch.Generator().manual_seed(0)
    heads, filters = torch.rand(4, 4, generator=generator), torch.rand(4, 64, generator=generator)
    budget = fraction * (16 * head_cost + 256 * filter_cost)
    assert 16 * head_cost > 0.2 * (16 * head_cost + 256 * filter_cost)
    result = search_units(heads, filters, head_cost, filter_cost, budget)
    counts = [sum(int(mask.sum()) for mask in masks) for masks in (result.head_masks, result.filter_masks)]
    assert counts[0] * head_cost + counts[1] * filter_cost == result.cost <= budget
    assert result.score_kept == pytest.approx(
        optimum_by_milp(heads, filters, [head_cost] * 4, [filter_cost] * 4, budget)
    )


def optimum_by_milp(
    heads: torch.Tensor, filters: torch.Tensor, head_costs: list, filter_costs: list, budget: float
) -> float:
    """The 0/1 knapsack optimum over all units, by branch and bound."""
    scores = torch.cat([heads.flatten(), filters.flatten()]).double().numpy()
    costs = np.concatenate([np.repeat(head_costs, heads.shape[1]), np.repeat(filter_costs, filters.shape[1])])
    solution = milp(
        -scores,
        constraints=LinearConstraint(costs[None] / budget, -np.inf, 1.0),
        integrality=np.ones(len(scores)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    assert solution.success
    return -float(solution.fun)


@pytest.mark.parametrize("fraction", [0.15, 0.4, 0.8])
@pytest.mark.parametrize("equal", [True, False])
def test_medium_cases_against_a_mixed_integer_program(fraction: float, equal: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    heads, filters = torch.rand(4, 4, generator=generator) * 8, torch.rand(4, 32, generator=generator)
    head_costs = [70] * 4 if equal else [70, 50, 90, 61]
    filter_costs = [10] * 4 if equal else [10, 7, 13, 9]
    budget = fraction * (4 * sum(head_costs) + 32 * sum(filter_costs))
    result = search_units(heads, filters, head_costs, filter_costs, budget)
    optimum = optimum_by_milp(heads, filters, head_costs, filter_costs, budget)
    if equal:
        assert result.score_kept == pytest.approx(optimum, rel=1e-9)
        assert result.gap == 0
    else:
        assert 0.99 * optimum <= result.score_kept <= optimum * (1 + 1e-9)
        assert optimum <= result.upper_bound * (1 + 1e-9) <= 1.02 * optimum


@settings(deadline=None, max_examples=100)
@given(few_heads, few_filters, st.integers(1, 3), st.integers(1, 4), fractions, st.data())
def test_multiples_and_minima_against_all_allowed_counts(
    heads: list, filters: list, head_multiple: int, filter_multiple: int, fraction: float, data: st.DataObject
) -> None:
    blocks = [*heads, *filters]
    multiples = [head_multiple] * len(heads) + [filter_multiple] * len(filters)
    minima = [data.draw(st.integers(0, len(block))) for block in blocks]
    costs = [7] * len(heads) + [3] * len(filters)
    allowed = [sorted({*range(0, len(b) + 1, m), len(b)}) for b, m in zip(blocks, multiples, strict=True)]
    counts = [[n for n in options if n >= least] for options, least in zip(allowed, minima, strict=True)]
    budget = fraction * sum(cost * len(block) for cost, block in zip(costs, blocks, strict=True))
    optimum = best_of_all_counts(blocks, costs, counts, budget)

    def search() -> SearchResult:
        return search_units(
            as_tensors(heads),
            as_tensors(filters),
            7,
            3,
            budget,
            head_multiple=head_multiple,
            filter_multiple=filter_multiple,
            minimum_heads=minima[: len(heads)],
            minimum_filters=minima[len(heads) :],
        )

    if optimum < 0:
        with pytest.raises(InfeasibleBudgetError) as caught:
            search()
        assert caught.value.smallest == sum(cost * options[0] for cost, options in zip(costs, counts, strict=True))
        return
    result = search()
    check_result(result, heads, filters, budget)
    kept = [int(mask.sum()) for mask in (*result.head_masks, *result.filter_masks)]
    assert all(count in options for count, options in zip(kept, counts, strict=True))
    whole = all(len(block) % multiple == 0 for block, multiple in zip(blocks, multiples, strict=True))
    assert result.score_kept == optimum if whole else optimum / 2 <= result.score_kept <= optimum
    assert optimum <= result.upper_bound * (1 + 1e-9)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), fractions, st.data())
def test_uniform_against_all_pairs_of_counts(
    blocks: int, heads_each: int, filters_each: int, multiple: int, fraction: float, data: st.DataObject
) -> None:
    scores = st.integers(0, 20)
    heads = [data.draw(st.lists(scores, min_size=heads_each, max_size=heads_each)) for _ in range(blocks)]
    filters = [data.draw(st.lists(scores, min_size=filters_each, max_size=filters_each)) for _ in range(blocks)]
    head_costs = [data.draw(st.integers(1, 9)) for _ in range(blocks)]
    budget = fraction * (heads_each * sum(head_costs) + filters_each * 2 * blocks)
    result = search_units(
        as_tensors(heads), as_tensors(filters), head_costs, 2, budget, filter_multiple=multiple, uniform=True
    )
    check_result(result, heads, filters, budget)
    assert len({int(mask.sum()) for mask in result.head_masks}) == 1
    assert len({int(mask.sum()) for mask in result.filter_masks}) == 1
    counts = itertools.product(range(heads_each + 1), {*range(0, filters_each + 1, multiple), filters_each})
    optimum = max(
        best_of_all_counts([*heads, *filters], [*head_costs, *[2] * blocks], [[h]] * blocks + [[f]] * blocks, budget)
        for h, f in counts
    )
    assert result.score_kept == optimum
    assert result.gap == 0
