"""The search under measured latency, against all widths, the paper's algorithm taken literally, and its own bound."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.budget.latency_fit import fit_latency
from hf_prune.budget.latency_search import search_latency, search_latency_units
from hf_prune.errors import InfeasibleBudgetError, PruningError

few_heads = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=3), min_size=1, max_size=3)
few_filters = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=5), min_size=1, max_size=3)
fractions = st.floats(0.01, 1.1)


def as_tensors(blocks: list[list[int]]) -> list[torch.Tensor]:
    return [torch.tensor(block, dtype=torch.float32) for block in blocks]


def rising_table(units: int) -> st.SearchStrategy[list[int]]:
    steps = st.lists(st.integers(0, 12), min_size=units, max_size=units)
    return steps.map(lambda rises: [0, *itertools.accumulate(rises)])


def best_score(block: Sequence[float], width: int) -> float:
    return sum(sorted(block, reverse=True)[:width])


def best_of_all_widths(blocks: list, tables: list, widths: list[list[int]], budget: float) -> float:
    """The highest score when block i keeps its best widths[i][...] units within the budget; -1 if nothing fits."""
    best = {0: 0.0}
    for block, table, allowed in zip(blocks, tables, widths, strict=True):
        extended: dict[float, float] = {}
        for cost, score in best.items():
            for width in allowed:
                total = cost + table[width]
                if total <= budget:
                    extended[total] = max(extended.get(total, -1.0), score + best_score(block, width))
        best = extended
    return max(best.values(), default=-1.0)


def kept_counts(masks: Sequence[torch.Tensor]) -> list[int]:
    return [int(mask.sum()) for mask in masks]


def kept_score(masks: Sequence[torch.Tensor], blocks: Sequence[torch.Tensor]) -> float:
    return sum(float(block.double()[mask].sum()) for mask, block in zip(masks, blocks, strict=True))


def measured(tables: list, counts: list[int]) -> Fraction:
    return sum((Fraction(table[count]) for table, count in zip(tables, counts, strict=True)), Fraction(0))


def literal_algorithm_2(
    heads: torch.Tensor,
    filters: torch.Tensor,
    head_table: Sequence[float],
    filter_table: Sequence[float],
    budget: float,
) -> tuple[list[int], list[int]] | None:
    """Kwon et al. 2022, Algorithm 2 line by line, without rounding: kept counts per block.

    None where the constants do not fit.
    """
    head_fit, filter_fit = fit_latency(head_table), fit_latency(filter_table)
    head_slope, filter_slope = Fraction(head_fit.slope), Fraction(filter_fit.slope)
    constants = len(heads) * Fraction(head_fit.constant) + len(filters) * Fraction(filter_fit.constant)
    rest = Fraction(budget) - constants
    if rest < 0:
        return None

    def beyond(scores: torch.Tensor, threshold: int) -> list[tuple[float, int]]:
        ranked = scores.sort(dim=1, descending=True).values[:, threshold:].tolist()
        return sorted(((s, layer) for layer, row in enumerate(ranked) for s in row), key=lambda pair: -pair[0])

    head_rest, filter_rest = beyond(heads, head_fit.threshold), beyond(filters, filter_fit.threshold)
    best, chosen = -1.0, (0, 0)
    for n in range(len(head_rest) + 1):
        left = rest - n * head_slope
        if left < 0:
            break
        f = min(int(left / filter_slope), len(filter_rest)) if filter_slope else len(filter_rest)
        score = sum(s for s, _ in head_rest[:n]) + sum(s for s, _ in filter_rest[:f])
        if score > best:
            best, chosen = score, (n, f)
    head_counts, filter_counts = [head_fit.threshold] * len(heads), [filter_fit.threshold] * len(filters)
    for _, layer in head_rest[: chosen[0]]:
        head_counts[layer] += 1
    for _, layer in filter_rest[: chosen[1]]:
        filter_counts[layer] += 1
    return head_counts, filter_counts


@settings(deadline=None, max_examples=200)
@given(few_heads, few_filters, fractions, st.integers(1, 3), st.integers(1, 4), st.data())
def test_tables_per_block_against_all_widths(
    heads: list, filters: list, fraction: float, head_multiple: int, filter_multiple: int, data: st.DataObject
) -> None:
    blocks = [*heads, *filters]
    tables = [data.draw(rising_table(len(block))) for block in blocks]
    budget = fraction * max(sum(table[-1] for table in tables), 1)
    multiples = [head_multiple] * len(heads) + [filter_multiple] * len(filters)
    minima = [data.draw(st.integers(0, len(block)) if data.draw(st.booleans()) else st.just(0)) for block in blocks]
    widths = [
        [n for n in sorted({*range(0, len(block) + 1, multiple), len(block)}) if n >= least]
        for block, multiple, least in zip(blocks, multiples, minima, strict=True)
    ]
    optimum = best_of_all_widths(blocks, tables, widths, budget)
    arguments = as_tensors(heads), as_tensors(filters), tables[: len(heads)], tables[len(heads) :], budget
    options = {
        "head_multiple": head_multiple,
        "filter_multiple": filter_multiple,
        "minimum_heads": minima[: len(heads)],
        "minimum_filters": minima[len(heads) :],
    }
    if optimum < 0:
        with pytest.raises(InfeasibleBudgetError) as caught:
            search_latency_units(*arguments, **options)
        assert caught.value.smallest == sum(t[allowed[0]] for t, allowed in zip(tables, widths, strict=True))
        return
    result = search_latency_units(*arguments, **options)
    counts = kept_counts([*result.head_masks, *result.filter_masks])
    assert all(count in allowed for count, allowed in zip(counts, widths, strict=True))
    assert result.cost == measured(tables, counts) <= budget
    assert result.score_kept == sum(best_score(block, count) for block, count in zip(blocks, counts, strict=True))
    assert optimum / 2 <= result.score_kept <= optimum <= result.upper_bound * (1 + 1e-9)


@settings(deadline=None, max_examples=100)
@given(few_heads, few_filters, st.integers(1, 30), st.integers(1, 12), fractions)
def test_linear_tables_give_the_optimum(
    heads: list, filters: list, head_cost: int, filter_cost: int, fraction: float
) -> None:
    head_table = [head_cost * width for width in range(1 + max(map(len, heads)))]
    filter_table = [filter_cost * width for width in range(1 + max(map(len, filters)))]
    blocks, tables = [*heads, *filters], [head_table] * len(heads) + [filter_table] * len(filters)
    budget = fraction * sum(table[len(block)] for block, table in zip(blocks, tables, strict=True))
    result = search_latency_units(as_tensors(heads), as_tensors(filters), head_table, filter_table, budget)
    widths = [list(range(len(block) + 1)) for block in blocks]
    assert result.score_kept == best_of_all_widths(blocks, tables, widths, budget)
    assert result.cost <= budget
    assert result.gap == 0


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), fractions, st.data())
def test_uniform_against_all_pairs_of_widths(
    blocks: int, heads_each: int, filters_each: int, multiple: int, fraction: float, data: st.DataObject
) -> None:
    scores = st.integers(0, 20)
    heads = [data.draw(st.lists(scores, min_size=heads_each, max_size=heads_each)) for _ in range(blocks)]
    filters = [data.draw(st.lists(scores, min_size=filters_each, max_size=filters_each)) for _ in range(blocks)]
    head_tables = [data.draw(rising_table(heads_each)) for _ in range(blocks)]
    filter_table = data.draw(rising_table(filters_each))
    dense = sum(table[-1] for table in head_tables) + blocks * filter_table[-1]
    budget = fraction * max(dense, 1)
    result = search_latency_units(
        as_tensors(heads),
        as_tensors(filters),
        head_tables,
        filter_table,
        budget,
        filter_multiple=multiple,
        uniform=True,
    )
    assert len(set(kept_counts(result.head_masks))) == len(set(kept_counts(result.filter_masks))) == 1
    pairs = itertools.product(range(heads_each + 1), {*range(0, filters_each + 1, multiple), filters_each})
    optimum = max(
        sum(best_score(block, h) for block in heads) + sum(best_score(block, f) for block in filters)
        for h, f in pairs
        if sum(table[h] for table in head_tables) + blocks * filter_table[f] <= budget
    )
    assert result.score_kept == optimum
    assert result.cost <= budget


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 3), st.integers(2, 5), st.integers(2, 12), fractions, st.integers(0, 2**31), st.data())
def test_at_least_as_good_as_the_literal_algorithm(
    layers: int, heads_each: int, filters_each: int, fraction: float, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads = torch.rand(layers, heads_each, generator=generator).double() * 3
    filters = torch.rand(layers, filters_each, generator=generator).double()
    head_table = [float(entry) for entry in data.draw(rising_table(heads_each))]
    filter_table = [float(entry) for entry in data.draw(rising_table(filters_each))]
    budget = fraction * max(layers * (head_table[-1] + filter_table[-1]), 1.0)
    head_masks, filter_masks = search_latency(heads, filters, head_table, filter_table, budget)
    tables = [head_table] * layers + [filter_table] * layers
    assert measured(tables, kept_counts([*head_masks, *filter_masks])) <= budget
    literal = literal_algorithm_2(heads, filters, head_table, filter_table, budget)
    if literal is None or measured(tables, [*literal[0], *literal[1]]) > budget:
        return
    literal_score = sum(
        best_score(row.tolist(), count)
        for row, count in zip((*heads, *filters), (*literal[0], *literal[1]), strict=True)
    )
    assert kept_score([*head_masks, *filter_masks], [*heads, *filters]) >= literal_score * (1 - 1e-12)


def test_the_fit_is_not_rounded_to_the_unit_of_whole_seconds() -> None:
    # The filters' slope is 4.74: as 4 it promises so little that another cut would be taken.
    head_table, filter_table = [0, 0, 5, 13, 13], [0, 2, 9, 11, 13, 14, 26, 34, 37]
    generator = torch.Generator().manual_seed(4000)
    heads = torch.rand(3, 4, generator=generator).double() * 3
    filters = torch.rand(3, 8, generator=generator).double()
    assert literal_algorithm_2(heads, filters, head_table, filter_table, 135.9375) == ([4, 4, 4], [7, 7, 6])
    head_masks, filter_masks = search_latency(heads, filters, head_table, filter_table, 135.9375)
    assert kept_counts([*head_masks, *filter_masks]) == [4, 4, 4, 7, 7, 6]


def test_where_the_fit_promises_too_little_time() -> None:
    # Time grows faster than any line through the overhead, so the fit is below the table in the middle.
    table = [0.0, 1.0, 1.0, 2.0, 4.0, 6.0, 7.0, 7.5, 8.0]
    generator = torch.Generator().manual_seed(0)
    heads, filters = torch.rand(2, 8, generator=generator), torch.rand(2, 8, generator=generator)
    budget = 17.0
    literal = literal_algorithm_2(heads, filters, table, table, budget)
    assert literal is not None
    assert measured([table] * 4, [*literal[0], *literal[1]]) > budget
    result = search_latency_units(heads, filters, table, table, budget)
    assert result.cost == measured([table] * 4, kept_counts([*result.head_masks, *result.filter_masks])) <= budget
    assert result.score_kept >= 0.9 * result.upper_bound


def test_drops_whole_sublayers_where_the_overheads_do_not_fit() -> None:
    heads = torch.tensor([[9.0, 8.0], [1.0, 1.0]])
    filters = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.1, 0.1, 0.1, 0.1]])
    flat = [0.0, 2.0, 2.0], [0.0, 3.0, 3.0, 3.0, 3.0]
    assert literal_algorithm_2(heads, filters, *flat, 6.0) is None
    head_masks, filter_masks = search_latency(heads, filters, *flat, 6.0)
    assert kept_counts(head_masks) == [2, 0]
    assert kept_counts(filter_masks) == [4, 0]


def test_realistic_tables_come_close_to_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    heads = torch.rand(12, 12, generator=generator) ** 4 * 50
    filters = torch.rand(12, 3072, generator=generator) ** 6
    widths, noise = np.arange(3073), np.random.default_rng(0)
    filter_table = np.where(widths == 0, 0.0, 2e-4 + np.ceil(widths / 16) * 1.6e-5)
    filter_table[1:] *= 1 + 0.02 * noise.standard_normal(3072)
    head_table = np.where(np.arange(13) == 0, 0.0, 3e-4 + np.arange(13) * 2e-4)
    dense = 12 * (head_table[-1] + filter_table[-1])
    for fraction in (0.3, 0.6):
        result = search_latency_units(heads, filters, head_table, torch.from_numpy(filter_table), fraction * dense)
        tables = [head_table] * 12 + [filter_table] * 12
        assert measured(tables, kept_counts([*result.head_masks, *result.filter_masks])) <= fraction * dense
        assert result.gap <= 0.01 * result.score_kept


def test_noisy_tables_are_replaced_by_their_running_maximum() -> None:
    table = [0.0, 4.0, 3.0, 6.0, 5.0]
    result = search_latency_units([], [torch.rand(4)] * 2, [], table, 8.0)
    # Two units would take 3 as measured, but the running maximum says 4.
    assert result.cost == 8.0
    assert kept_counts(result.filter_masks) == [2, 2]
    assert kept_counts(search_latency([], [torch.rand(4)] * 2, [], table, 7.9)[1]) != [2, 2]


def test_the_dense_time_as_measured_keeps_everything() -> None:
    result = search_latency_units([torch.zeros(2)], [torch.zeros(3)], [0, 2.0, 1.0], [0, 1.0, 5.0, 4.0], 5.0)
    assert all(bool(mask.all()) for mask in (*result.head_masks, *result.filter_masks))
    assert result.cost == 5.0
    assert result.gap == 0


def test_a_shared_table_serves_smaller_blocks() -> None:
    filters = [torch.tensor([1.0, 3.0]), torch.tensor([9.0, 8.0, 7.0, 6.0])]
    masks = search_latency([], filters, [], [0, 1, 2, 3, 4], 5)[1]
    assert [mask.tolist() for mask in masks] == [[False, True], [True] * 4]


def test_the_required_minimum_is_out_of_reach() -> None:
    table = [0.0, 0.3, 0.5, 0.6]
    with pytest.raises(InfeasibleBudgetError, match="raise the budget") as caught:
        search_latency([torch.rand(3)], [torch.rand(3)], table, table, 0.7, minimum_heads=[1], minimum_filters=[2])
    smallest = caught.value.smallest
    assert smallest == pytest.approx(0.8)
    masks = search_latency(
        [torch.rand(3)], [torch.rand(3)], table, table, smallest, minimum_heads=[1], minimum_filters=[2]
    )
    assert kept_counts([*masks[0], *masks[1]]) == [1, 2]


@pytest.mark.parametrize(
    ("latency", "message"),
    [
        ([0.0, 1.0], "the filter latency table has 2 entries; 3 units need 4"),
        ([[0, 1, 2, 3], [0, 1, 2]], "filter latency table of block 1 has 3 entries; 3 units need 4"),
        ([[0, 1, 2, 3]], "1 filter latency tables for 2 blocks"),
        ([0.5, 1.0, 2.0, 3.0], "starts with 0.5"),
        ([0.0, 1.0, float("nan"), 3.0], "entry 2 of the filter latency table must be finite"),
        ([0.0, 1.0, -2.0, 3.0], "entry 2 of the filter latency table must be finite and not negative, got -2.0"),
    ],
)
def test_invalid_tables(latency: list, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        search_latency([], [torch.ones(3), torch.ones(3)], [], latency, 1.0)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_invalid_budgets(budget: float) -> None:
    with pytest.raises(PruningError, match="budget must be a number above 0"):
        search_latency([torch.ones(1)], [torch.ones(1)], [0, 1], [0, 1], budget)
