"""Which rung every ladder gets, so that the kept score is highest within a budget.

The search of Kwon et al. 2022 (Algorithm 1): for every number of steps taken on the heads' side, the filters' side
takes as many as the rest of the budget buys, and the pair with the best score wins.  If the order of the steps is
exact on both sides, so is the result (their section A.1).  Elsewhere this is a knapsack problem: what a pair leaves of
the budget is filled greedily, and the fractional relaxation bounds what may have been missed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

import numpy as np

from .exact_costs import CostUnit
from .steps import SAME_DENSITY, Choice, fractional_gain, order_steps, score_density


class Knapsack:
    """The search over two sides of ladders under one budget.

    Args:
        heads: the choices of the first side, whose steps are swept one by one: the side with fewer of them.
        filters: the choices of the second side.
        budget: in the unit of their costs; at least what the floors cost.
        unit: that unit.
    """

    def __init__(self, heads: Sequence[Choice], filters: Sequence[Choice], budget: int, unit: CostUnit) -> None:
        everything = [*heads, *filters]
        self.budget = budget
        self.unit = unit
        self.keeps_everything = sum(choice.costs[-1] for choice in everything) <= budget
        self.floors = [choice.floor for choice in everything]
        left = budget - sum(choice.costs[choice.floor] for choice in everything)
        # Rungs out of reach even with all other ladders on their floors would bend the hulls and loosen the bound.
        self.choices = [choice.up_to(choice.costs[choice.floor] + left) for choice in everything]
        self._first_filter = len(heads)
        self._heads = order_steps(self.choices[: len(heads)])
        self._filters = order_steps(self.choices[len(heads) :])

    @property
    def exact(self) -> bool:
        """Whether `solve` finds the true optimum."""
        return self.keeps_everything or (self._heads.exact and self._filters.exact)

    def cost(self, rungs: Sequence[int]) -> int:
        """What standing on these rungs costs."""
        return sum(choice.costs[rung] for choice, rung in zip(self.choices, rungs, strict=True))

    def score(self, rungs: Sequence[int]) -> float:
        """The score that these rungs keep."""
        return math.fsum(choice.scores[rung] for choice, rung in zip(self.choices, rungs, strict=True))

    def upper_bound(self) -> float:
        """A score that no rungs within the budget exceed, up to float64 rounding."""
        left = self.unit.number(self.budget - self.cost(self.floors))
        return self.score(self.floors) + fractional_gain(self.choices, left)

    def solve(self) -> list[int]:
        """One rung per choice, at or above the floors, together within the budget.

        Everything is kept where that fits.  Pairs of the sweep that gain the same: the cheaper one, then the one with
        fewer steps on the heads' side.  If not `exact`, at least half of what the optimum gains over the floors.
        """
        if self.keeps_everything:
            return [choice.top for choice in self.choices]
        if not self.exact:
            return self._best_filled()
        _, _, taken, bought = max(self._sweep(), key=lambda pair: pair[:2])
        return self._rungs_after(taken, bought)

    def fill(self, rungs: Sequence[int]) -> list[int]:
        """Raises ladders from these rungs while something that gains score fits, best score per cost first."""
        filled = list(rungs)
        left = self.budget - self.cost(rungs)
        jumps = [jump for index, rung in enumerate(rungs) if (jump := self._best_jump(index, rung, left))]
        heapify(jumps)
        while jumps:
            _, index, rung = heappop(jumps)
            costs = self.choices[index].costs
            cost = costs[rung] - costs[filled[index]]
            if cost <= left:
                filled[index] = rung
                left -= cost
            if jump := self._best_jump(index, filled[index], left):
                heappush(jumps, jump)
        return filled

    def _sweep(self) -> Iterator[tuple[float, int, int, int]]:
        """(gain over the floors, minus its cost, steps on the heads' side, steps on the filters' side) of every pair.

        The pairs are those where no further step of the filters' side fits.
        """
        heads, filters = self._heads, self._filters
        left = self.budget - self.cost(self.floors)
        for taken, spent in enumerate(heads.costs):
            if spent > left:
                break
            bought = bisect_right(filters.costs, left - spent) - 1
            yield float(heads.gains[taken] + filters.gains[bought]), -spent - filters.costs[bought], taken, bought

    def _rungs_after(self, taken: int, bought: int) -> list[int]:
        rungs = np.array(self.floors, dtype=np.int64)
        for steps, count, first in ((self._heads, taken, 0), (self._filters, bought, self._first_filter)):
            np.maximum.at(rungs, steps.choices[:count] + first, steps.rungs[:count])
        return [int(rung) for rung in rungs]

    def _best_filled(self) -> list[int]:
        """The best of the filled pairs, leaving out those that no filling could make the best."""
        best, best_key = self.floors, (-math.inf, 0)
        base, left = self.score(self.floors), self.budget - self.cost(self.floors)
        for gain, negative_cost, taken, bought in sorted(self._sweep(), key=lambda pair: pair[:2], reverse=True):
            rest = left + negative_cost
            density = max(self._heads.best_density[taken], self._filters.best_density[bought])
            reach = gain + density * self.unit.number(rest) if rest else gain
            if (base + reach) * SAME_DENSITY <= best_key[0]:
                continue
            rungs = self.fill(self._rungs_after(taken, bought))
            key = (self.score(rungs), -self.cost(rungs))
            if key > best_key:
                best, best_key = rungs, key
        return self._better_alone(best)

    def _better_alone(self, best: list[int]) -> list[int]:
        """`best`, or a single ladder raised as far as it goes, and then the others, where that ladder alone is better.

        The fractional optimum is a pair of the sweep plus a part of one step, so one of the two is half as good.
        """
        for index, choice in enumerate(self.choices):
            alone = [*self.floors[:index], choice.top, *self.floors[index + 1 :]]
            if self.score(alone) > self.score(best):
                best = self.fill(alone)
        return best

    def _best_jump(self, index: int, rung: int, left: int) -> tuple[float, int, int] | None:
        """(minus score per cost, choice, rung) of the best raise of one ladder that `left` pays for."""
        choice = self.choices[index]
        limit = bisect_right(choice.costs, choice.costs[rung] + left)
        gains = choice.scores[rung + 1 : limit] - choice.scores[rung]
        if not len(gains) or gains[-1] <= 0:
            return None
        density = score_density(gains, choice.prices[rung + 1 : limit] - choice.prices[rung])
        free = np.flatnonzero(np.isinf(density))
        step = int(free[-1]) if len(free) else int(density.argmax())
        return -float(density[step]), index, rung + 1 + step
