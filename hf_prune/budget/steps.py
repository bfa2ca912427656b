"""What may be bought next: the raises of ladders, ordered by score per cost."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from .exact_costs import CostUnit

# Densities closer than this count as one: they come from differences of rounded sums.
SAME_DENSITY = 1 + 1e-12


@dataclass(frozen=True, eq=False)
class Choice:
    """One ladder and its price list.

    Attributes:
        gains: [rungs] what each rung adds to the score, none negative.
        costs: [rungs + 1] the cost of standing on each rung, in whole numbers of `unit`, never descending.
        floor: the lowest rung that may be chosen.
        unit: the unit of the costs.
    """

    gains: np.ndarray
    costs: list[int]
    floor: int
    unit: CostUnit

    @cached_property
    def scores(self) -> np.ndarray:
        """[rungs + 1] the score kept on each rung."""
        return np.concatenate([[0.0], np.cumsum(self.gains)])

    @cached_property
    def prices(self) -> np.ndarray:
        """[rungs + 1] the costs as float64 in the unit of the budget: for ratios, never to decide what fits."""
        return np.array([self.unit.number(cost) for cost in self.costs], dtype=np.float64)

    @property
    def top(self) -> int:
        """The highest rung."""
        return len(self.costs) - 1

    def up_to(self, cost: int) -> Choice:
        """The same choice without the rungs that cost more than `cost`."""
        top = bisect_right(self.costs, cost) - 1
        return Choice(self.gains[:top], self.costs[: top + 1], self.floor, self.unit)

    @cached_property
    def corners(self) -> list[int]:
        """The rungs above the floor where the upper concave hull of score over cost bends, the top last."""
        scores, prices = self.scores.tolist(), self.prices.tolist()
        corners, slopes = [self.floor], list[float]()
        for rung in range(self.floor + 1, self.top + 1):
            slope = _slope(scores, prices, corners[-1], rung)
            while slopes and slope > slopes[-1] * SAME_DENSITY:
                corners.pop()
                slopes.pop()
                slope = _slope(scores, prices, corners[-1], rung)
            corners.append(rung)
            slopes.append(slope)
        return corners[1:]


@dataclass(frozen=True, eq=False)
class Steps:
    """The raises of one side (all heads, or all filters) in the order in which they are taken, from the floors up.

    Attributes:
        choices, rungs: [steps] the choice that each step raises, and to which rung.
        gains, costs: [steps + 1] score gained and cost spent after so many steps.
        best_density: [steps + 1] the highest score per cost among the steps not yet taken, 0 after the last.
        exact: whether no set of raises that costs no more than the first n steps gains more, for every n.
    """

    choices: np.ndarray
    rungs: np.ndarray
    gains: np.ndarray
    costs: list[int]
    best_density: np.ndarray
    exact: bool


def order_steps(choices: Sequence[Choice]) -> Steps:
    """The steps of one side in descending score per cost; ties go to the earlier choice, then to the lower rung.

    Where all single rungs cost the same, or there is a single choice, each rung is a step and the order is exact.
    Elsewhere the steps lead from corner to corner of each concave hull, so that a cheap rung behind an expensive one
    (a table with plateaus, a first unit that pays the overhead) is seen with it.
    """
    exact = len(choices) <= 1 or _all_alike(choices)
    paths = [[choice.floor, *(_rungs_above_floor(choice) if exact else choice.corners)] for choice in choices]
    gains = [_gains_along(choice, path) for choice, path in zip(choices, paths, strict=True)]
    density = [
        score_density(gain, np.diff(choice.prices[path]))
        for choice, path, gain in zip(choices, paths, gains, strict=True)
    ]
    # The running minimum keeps the rungs of a choice in their order, whatever rounding did to its densities.
    order = np.argsort(-_joined([np.minimum.accumulate(part) for part in density]), kind="stable")
    costs = [
        choice.costs[after] - choice.costs[before]
        for choice, path in zip(choices, paths, strict=True)
        for before, after in pairwise(path)
    ]
    return Steps(
        np.repeat(np.arange(len(choices)), [len(path) - 1 for path in paths])[order],
        np.array([rung for path in paths for rung in path[1:]], dtype=np.int64)[order],
        np.concatenate([[0.0], np.cumsum(_joined(gains)[order])]),
        list(accumulate((costs[position] for position in order), initial=0)),
        np.maximum.accumulate(np.concatenate([[0.0], _joined(density)[order][::-1]]))[::-1],
        exact,
    )


def fractional_gain(choices: Sequence[Choice], left: float) -> float:
    """The score that `left` buys above the floors if steps could be bought in part.

    Nothing that costs at most `left` gains more, up to float64 rounding (the linear relaxation of the knapsack).
    """
    paths = [[choice.floor, *choice.corners] for choice in choices]
    gains = _joined([np.diff(choice.scores[path]) for choice, path in zip(choices, paths, strict=True)])
    prices = _joined([np.diff(choice.prices[path]) for choice, path in zip(choices, paths, strict=True)])
    order = np.argsort(-score_density(gains, prices), kind="stable")
    spent = np.concatenate([[0.0], np.cumsum(prices[order])])
    gained = np.concatenate([[0.0], np.cumsum(gains[order])])
    return float(np.interp(left, spent, gained))


def score_density(gains: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Score per cost; infinite where there is no cost."""
    return np.divide(gains, prices, out=np.full(len(gains), np.inf), where=prices > 0)


def _slope(scores: list[float], prices: list[float], before: int, after: int) -> float:
    price = prices[after] - prices[before]
    return (scores[after] - scores[before]) / price if price > 0 else math.inf


def _rungs_above_floor(choice: Choice) -> range:
    return range(choice.floor + 1, choice.top + 1)


def _gains_along(choice: Choice, path: list[int]) -> np.ndarray:
    # Where every rung is a step its own gain is exact; a difference of prefix sums would blur ties between blocks.
    every_rung = len(path) == choice.top - choice.floor + 1
    return choice.gains[choice.floor :] if every_rung else np.diff(choice.scores[path])


def _all_alike(choices: Sequence[Choice]) -> bool:
    """Whether all rungs above the floors cost the same and none gains more than the one below it."""
    costs = {after - before for choice in choices for before, after in pairwise(choice.costs[choice.floor :])}
    return len(costs) <= 1 and all(bool((np.diff(choice.gains[choice.floor :]) <= 0).all()) for choice in choices)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *parts])
