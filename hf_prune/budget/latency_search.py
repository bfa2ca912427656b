"""Which heads and filters to keep when the time of every width of a block was measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Unpack

from torch import Tensor

from ..errors import PruningError
from .exact_costs import CostUnit, Number, is_number, read_budget, read_number
from .grouping import Ladder, Scores
from .knapsack import Knapsack
from .latency_fit import LatencyFit, fit_latency
from .search import SearchOptions, SearchResult, SearchSpace, budget_in
from .steps import Choice

# Halvings of the interval in which the fit's own budget is sought: to a millionth of the budget.
_HALVINGS = 20


def search_latency(
    head_scores: Scores,
    filter_scores: Scores,
    head_latency: Any,
    filter_latency: Any,
    budget: Number,
    **options: Unpack[SearchOptions],
) -> tuple[list[Tensor], list[Tensor]]:
    """The heads and filters to keep so that their score is highest within a time (Kwon et al. 2022, Algorithm 2).

    As `search_latency_units`, returning the masks only.

    Returns:
        (head masks, filter masks): per block a bool tensor [units], true where kept, on the device of its scores.
    """
    result = search_latency_units(head_scores, filter_scores, head_latency, filter_latency, budget, **options)
    return result.head_masks, result.filter_masks


def search_latency_units(
    head_scores: Scores,
    filter_scores: Scores,
    head_latency: Any,
    filter_latency: Any,
    budget: Number,
    **options: Unpack[SearchOptions],
) -> SearchResult:
    """The heads and filters to keep so that their score is highest within a time, under the given restrictions.

    The better of two choices, both checked against the tables themselves.  The one is Algorithm 2 of the paper: the
    units below the threshold of the piece-wise linear fit are kept in every block, the rest is searched with the
    fitted slopes, and where the fit promised too little time its budget is lowered until the tables agree.  The other
    searches the concave hull of score over measured time, which follows steps in the tables and drops whole
    sublayers.  Both are then filled with what still fits.  Keeps at least half the score of the optimum (beyond what
    the minima keep), and the optimum itself with `uniform` or where every further unit of a kind takes the same time.

    A table that falls somewhere was measured with noise: it is replaced by its running maximum, which never promises
    less than what was measured.

    Args:
        head_scores, filter_scores: per block a 1-D tensor of non-negative scores [units], or a 2-D tensor.
        head_latency, filter_latency: seconds by kept units, starting with 0 for none: one table of one entry more
            than the largest block has units, or one table per block of one entry more than its units.
        budget: the longest time allowed, in seconds, for the sum over all blocks, above 0; from the sum of the
            tables' last entries upwards everything is kept.
        options: see `SearchOptions`.

    Returns:
        The masks; `cost` is in seconds, by the tables' running maxima (as measured if everything is kept).

    Raises:
        InfeasibleBudgetError: if the required minimum alone takes longer than the budget.
        PruningError: if a score, table, budget or option is invalid.
    """
    budget = read_budget(budget)
    space = SearchSpace.of(head_scores, filter_scores, **options)
    head_tables = _read_tables(head_latency, [block.numel() for block in space.head_blocks], "head")
    filter_tables = _read_tables(filter_latency, [block.numel() for block in space.filter_blocks], "filter")
    unit = CostUnit.of(entry for table in (*head_tables, *filter_tables) for entry in table)
    dense = sum(unit.whole(table[-1]) for table in (*head_tables, *filter_tables))
    if unit.number(dense) <= budget:
        everything = [len(ladder.gains) for ladder in (*space.heads, *space.filters)]
        return space.result(everything, unit.number(dense))
    heads = [_measured_choice(ladder, head_tables, unit) for ladder in space.heads]
    filters = [_measured_choice(ladder, filter_tables, unit) for ladder in space.filters]
    knapsack = Knapsack(heads, filters, budget_in(unit, budget, [*heads, *filters]), unit)
    rungs = knapsack.solve()
    bound = None
    if not knapsack.exact:
        found = [rungs, *_fitted_rungs(heads, filters, knapsack, budget)]
        rungs = max(found, key=lambda candidate: (knapsack.score(candidate), -knapsack.cost(candidate)))
        bound = knapsack.upper_bound()
    return space.result(rungs, unit.number(knapsack.cost(rungs)), bound)


def _read_tables(latency: Any, sizes: Sequence[int], kind: str) -> list[list[Number]]:
    """One table of the right length per block, entry 0 being 0."""
    rows = list(latency)
    if rows and is_number(rows[0]):
        shared = _read_table(rows, max(sizes, default=len(rows) - 1), f"the {kind} latency table")
        return [shared[: size + 1] for size in sizes]
    if len(rows) != len(sizes):
        raise PruningError(
            f"{len(rows)} {kind} latency tables for {len(sizes)} blocks; give one for all blocks, or one per block"
        )
    return [
        _read_table(list(row), size, f"the {kind} latency table of block {index}")
        for index, (row, size) in enumerate(zip(rows, sizes, strict=True))
    ]


def _read_table(table: list[Any], units: int, name: str) -> list[Number]:
    if len(table) != units + 1:
        raise PruningError(f"{name} has {len(table)} entries; {units} units need {units + 1}, from none kept to all")
    entries = [read_number(entry, f"entry {index} of {name}") for index, entry in enumerate(table)]
    if entries[0] != 0:
        raise PruningError(f"{name} starts with {entries[0]}; with no unit kept the block takes no time: start with 0")
    return entries


def _measured_choice(ladder: Ladder, tables: Sequence[list[Number]], unit: CostUnit) -> Choice:
    rising = [list(accumulate((unit.whole(entry) for entry in tables[block]), max)) for block in ladder.blocks]
    costs = [sum(table[width] for table in rising) for width in ladder.widths]
    return Choice(ladder.gains, costs, ladder.floor, unit)


def _fitted_rungs(
    heads: Sequence[Choice], filters: Sequence[Choice], knapsack: Knapsack, budget: Number
) -> list[list[int]]:
    """Algorithm 2 under the highest internal budget that the tables confirm, filled: one result, or none."""
    fits = [fit_latency(choice.prices) for choice in (*heads, *filters)]
    # Of the fit and of the budget, too: in the tables' own unit, which may be coarse, they would be rounded.
    unit = CostUnit.of([budget, *(number for fit in fits for number in (fit.constant, fit.slope))])
    fitted = [_fitted(choice, fit, unit) for choice, fit in zip((*heads, *filters), fits, strict=True)]
    low = sum(choice.costs[choice.floor] for choice in fitted)
    high = unit.whole(budget)
    if low > high:
        return []

    def search(internal: int) -> list[int] | None:
        rungs = Knapsack(fitted[: len(heads)], fitted[len(heads) :], internal, unit).solve()
        measured = sum(choice.costs[rung] for choice, rung in zip((*heads, *filters), rungs, strict=True))
        return rungs if measured <= knapsack.budget else None

    best = search(high)
    for _ in range(_HALVINGS if best is None else 0):
        middle = (low + high) // 2
        found = search(middle)
        best, low, high = (found, middle, high) if found else (best, low, middle)
    return [knapsack.fill(best)] if best else []


def _fitted(choice: Choice, fit: LatencyFit, unit: CostUnit) -> Choice:
    """The choice at the fitted latencies, with everything up to the threshold taken (lines 1 to 5 of Algorithm 2)."""
    constant, slope = unit.whole(fit.constant), unit.whole(fit.slope)
    above = [constant + slope * step for step in range(choice.top - fit.threshold + 1)]
    costs = [0, *[constant] * (fit.threshold - 1), *above] if choice.top else [0]
    return Choice(choice.gains, costs, max(choice.floor, fit.threshold), unit)
