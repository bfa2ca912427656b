"""Which heads and filters to keep when every head and every filter of a block has a known cost."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np
from torch import Tensor

from ..errors import InfeasibleBudgetError
from .exact_costs import CostUnit, Number, costs_per_block, read_budget
from .grouping import Ladder, Scores, build_ladders, ladder_masks, score_blocks
from .knapsack import Knapsack
from .steps import Choice


class SearchOptions(TypedDict, total=False):
    """What restricts the counts that a search may choose.

    Keys:
        head_multiple, filter_multiple: the kept count of a block is a multiple of this (default 1), or the whole
            block where its size is no multiple. One number, or one per block.
        uniform: every block of a kind keeps the same count; the blocks of a kind must then have the same size.
        minimum_heads, minimum_filters: for every block the count that must be kept, rounded up to an allowed one.
        filter_groups: for every filter block the name of its group, or None; the blocks of a group (the experts of a
            layer) keep the same count each and must have the same size.
    """

    head_multiple: int | Sequence[int]
    filter_multiple: int | Sequence[int]
    uniform: bool
    minimum_heads: Sequence[int] | None
    minimum_filters: Sequence[int] | None
    filter_groups: Sequence[Hashable | None] | None


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Which units to keep.

    Attributes:
        head_masks, filter_masks: per block a bool tensor [units], true where kept, on the device of its scores.
        score_kept: the sum of the kept units' scores.
        cost: what the kept units cost, never above the budget.
        upper_bound: a score that no allowed choice within the budget exceeds, up to float64 rounding; equal to
            `score_kept` where the choice is known to be optimal.
    """

    head_masks: list[Tensor]
    filter_masks: list[Tensor]
    score_kept: float
    cost: Number
    upper_bound: float

    @property
    def gap(self) -> float:
        """How much score an optimal choice could keep beyond this one, at most."""
        return self.upper_bound - self.score_kept


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """The scores of both kinds and the widths that the options allow.

    Attributes:
        head_blocks, filter_blocks: per block its scores [units].
        heads, filters: the ladders of each kind.
    """

    head_blocks: list[Tensor]
    filter_blocks: list[Tensor]
    heads: list[Ladder]
    filters: list[Ladder]

    @classmethod
    def of(
        cls,
        head_scores: Scores,
        filter_scores: Scores,
        *,
        head_multiple: int | Sequence[int] = 1,
        filter_multiple: int | Sequence[int] = 1,
        uniform: bool = False,
        minimum_heads: Sequence[int] | None = None,
        minimum_filters: Sequence[int] | None = None,
        filter_groups: Sequence[Hashable | None] | None = None,
    ) -> SearchSpace:
        """Checks scores and options (`PruningError`) and builds the ladders; the options are `SearchOptions`."""
        head_blocks, filter_blocks = score_blocks(head_scores, "head"), score_blocks(filter_scores, "filter")
        heads = build_ladders(head_blocks, "head", multiple=head_multiple, uniform=uniform, minimum=minimum_heads)
        filters = build_ladders(
            filter_blocks,
            "filter",
            multiple=filter_multiple,
            uniform=uniform,
            minimum=minimum_filters,
            groups=filter_groups,
        )
        return cls(head_blocks, filter_blocks, heads, filters)

    def result(self, rungs: Sequence[int], cost: Number, upper_bound: float | None = None) -> SearchResult:
        """The masks for one rung per ladder, heads first, with the score that they keep; no bound: they are optimal."""
        head_rungs, filter_rungs = rungs[: len(self.heads)], rungs[len(self.heads) :]
        ladders = [*self.heads, *self.filters]
        kept = math.fsum(gain for ladder, rung in zip(ladders, rungs, strict=True) for gain in ladder.gains[:rung])
        return SearchResult(
            ladder_masks(self.heads, head_rungs, self.head_blocks),
            ladder_masks(self.filters, filter_rungs, self.filter_blocks),
            kept,
            cost,
            kept if upper_bound is None else max(kept, upper_bound),
        )


def search_flops(
    head_scores: Scores, filter_scores: Scores, head_cost: Any, filter_cost: Any, budget: Number
) -> tuple[list[Tensor], list[Tensor]]:
    """The heads and filters to keep so that their score is highest within a budget (Kwon et al. 2022, Algorithm 1).

    As `search_units`, without its options, and returning the masks only.

    Returns:
        (head masks, filter masks): per block a bool tensor [units], true where kept, on the device of its scores.
    """
    result = search_units(head_scores, filter_scores, head_cost, filter_cost, budget)
    return result.head_masks, result.filter_masks


def search_units(
    head_scores: Scores,
    filter_scores: Scores,
    head_cost: Any,
    filter_cost: Any,
    budget: Number,
    **options: Unpack[SearchOptions],
) -> SearchResult:
    """The heads and filters to keep so that their score is highest within a budget, under the given restrictions.

    Optimal when all heads cost the same and all filters cost the same (and the multiples divide the sizes of their
    blocks), or with `uniform`; otherwise within `SearchResult.gap` of the optimum.  The cost is compared with the
    budget in exact arithmetic and never exceeds it.  Equal scores: units of the earlier block, then the lower index;
    equal totals: the cheaper choice.  Units that score 0 are kept where the budget has room for them.

    Args:
        head_scores, filter_scores: per block a 1-D tensor of non-negative scores [units], or a 2-D tensor.
        head_cost, filter_cost: what one unit costs, in any unit: one number, or one per block.
        budget: the highest cost allowed, in the same unit, above 0; from the dense cost upwards everything is kept.
        options: see `SearchOptions`.

    Raises:
        InfeasibleBudgetError: if the required minimum alone costs more than the budget.
        PruningError: if a score, cost, budget or option is invalid.
    """
    budget = read_budget(budget)
    space = SearchSpace.of(head_scores, filter_scores, **options)
    head_costs = costs_per_block(head_cost, len(space.head_blocks), "head")
    filter_costs = costs_per_block(filter_cost, len(space.filter_blocks), "filter")
    unit = CostUnit.of([*head_costs, *filter_costs])
    heads = [_linear_choice(ladder, head_costs, unit) for ladder in space.heads]
    filters = [_linear_choice(ladder, filter_costs, unit) for ladder in space.filters]
    knapsack = Knapsack(heads, filters, budget_in(unit, budget, [*heads, *filters]), unit)
    rungs = knapsack.solve()
    bound = None if knapsack.exact else knapsack.upper_bound()
    return space.result(rungs, unit.number(knapsack.cost(rungs)), bound)


def budget_in(unit: CostUnit, budget: Number, choices: Sequence[Choice]) -> int:
    """The budget in whole units, rounded down, and no more than keeping everything costs.

    Raises:
        InfeasibleBudgetError: if the lowest rungs that may be chosen cost more; it states what they cost.
    """
    dense = sum(choice.costs[-1] for choice in choices)
    # Compared as rounded numbers, so that the dense cost itself, which the caller may have rounded, is dense.
    whole = dense if unit.number(dense) <= budget else unit.whole(budget)
    floor = sum(choice.costs[choice.floor] for choice in choices)
    if floor > whole:
        smallest = unit.number_above(floor)
        raise InfeasibleBudgetError(
            f"the budget {budget} is out of reach: the units that must be kept alone cost {smallest}; "
            "raise the budget to at least that, or require fewer units",
            smallest,
        )
    return whole


def _linear_choice(ladder: Ladder, costs: Sequence[Number], unit: CostUnit) -> Choice:
    cost = sum(unit.whole(costs[block]) for block in ladder.blocks)
    return Choice(np.asarray(ladder.gains), [width * cost for width in ladder.widths], ladder.floor, unit)
