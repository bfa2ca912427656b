"""Exactness of the budget search: never above the budget, and as good as a mixed-integer solver on small cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from tqdm import tqdm

from hf_prune.budget import search_units

# BERT-base at 128 tokens: FLOPs of one head and of one filter.
LAYERS, HEADS, FILTERS = 12, 12, 3072
HEAD_FLOPS, FILTER_FLOPS = 2 * 27_262_976, 2 * 196_608
ROUNDING = 1e-9


@dataclass
class BudgetCheck:
    """Searches on a model of BERT-base's size.

    Attributes:
        searches: how many.
        highest: the highest cost found, as a share of its budget.
    """

    searches: int = 0
    highest: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether no budget was exceeded."""
        return self.highest <= 1


@dataclass
class OptimumCheck:
    """Searches on small cases, beside the solver's optimum.

    Attributes:
        searches: how many.
        optimal: how many found the optimum.
        above_budget: how many exceeded the budget.
        wrong_bounds: how many reported a bound that the optimum exceeds.
        worst_gap: largest share of the optimal score that was missed.
    """

    searches: int = 0
    optimal: int = 0
    above_budget: int = 0
    wrong_bounds: int = 0
    worst_gap: float = 0.0

    @property
    def honest(self) -> bool:
        """Whether budgets and bounds hold."""
        return self.above_budget == 0 and self.wrong_bounds == 0

    @property
    def exact(self) -> bool:
        """Whether every search also found the optimum."""
        return self.honest and self.optimal == self.searches


def check_budgets(draws: int) -> BudgetCheck:
    """Every percentage as a budget, for some draws of the scores."""
    check = BudgetCheck()
    dense = LAYERS * (HEADS * HEAD_FLOPS + FILTERS * FILTER_FLOPS)
    generator = torch.Generator().manual_seed(0)
    for _ in tqdm(range(draws), desc="Budgets", unit="draw", leave=False, disable=None):
        heads = torch.randn(LAYERS, HEADS, generator=generator).mul(2).exp()
        filters = torch.randn(LAYERS, FILTERS, generator=generator).mul(2).exp() / 100
        for percent in range(1, 101):
            budget = percent * dense / 100
            result = search_units(heads, filters, HEAD_FLOPS, FILTER_FLOPS, budget)
            cost = HEAD_FLOPS * _kept(result.head_masks) + FILTER_FLOPS * _kept(result.filter_masks)
            check.searches += 1
            check.highest = max(check.highest, cost / budget)
    return check


def check_optima(instances: int, *, equal_costs: bool) -> OptimumCheck:
    """Random small models under random budgets.

    Args:
        instances: how many.
        equal_costs: one cost for all heads and one for all filters, for which the search is exact; otherwise one
            per block, for which it promises a bound.
    """
    check = OptimumCheck()
    random = np.random.default_rng(1)
    for _ in tqdm(range(instances), desc="Optima", unit="case", leave=False, disable=None):
        _compare(check, random, equal_costs)
    return check


def _compare(check: OptimumCheck, random: np.random.Generator, equal_costs: bool) -> None:
    heads, filters = _scores(random, most=4), _scores(random, most=9)
    head_costs, filter_costs = _costs(random, len(heads), 20, equal_costs), _costs(random, len(filters), 6, equal_costs)
    blocks, prices = [*heads, *filters], [*head_costs, *filter_costs]
    values = torch.cat(blocks).numpy()
    costs = np.repeat(prices, [len(block) for block in blocks])
    budget = max(1, int(random.uniform(0, 1.1) * costs.sum()))
    result = search_units(heads, filters, head_costs, filter_costs, budget)
    kept = torch.cat([*result.head_masks, *result.filter_masks]).numpy()
    optimum, found = _optimum(values, costs, budget), float(values[kept].sum())
    slack = ROUNDING * max(1.0, optimum)
    check.searches += 1
    check.optimal += int(found >= optimum - slack)
    check.above_budget += int(costs[kept].sum() > budget)
    check.wrong_bounds += int(result.upper_bound < optimum - slack)
    check.worst_gap = max(check.worst_gap, (optimum - found) / optimum if optimum else 0.0)


def _scores(random: np.random.Generator, most: int) -> list[torch.Tensor]:
    """Blocks of different sizes; some scores are equal, some are zero."""
    sizes = random.integers(1, most + 1, size=random.integers(1, 4))
    blocks = [np.round(random.lognormal(0, 1.5, size=size), random.integers(0, 4)) for size in sizes]
    return [torch.from_numpy(block) for block in blocks]


def _costs(random: np.random.Generator, blocks: int, highest: int, equal: bool) -> list[int]:
    draws = random.integers(1, highest + 1, size=1 if equal else blocks)
    return [int(cost) for cost in np.broadcast_to(draws, blocks)]


def _optimum(values: np.ndarray, costs: np.ndarray, budget: int) -> float:
    """The highest score within the budget, by SciPy's solver."""
    solved = milp(
        -values,
        integrality=np.ones(len(values), dtype=int),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(costs[None], ub=budget),
        options={"mip_rel_gap": 0},
    )
    return float(values[np.asarray(solved.x) > 0.5].sum())


def _kept(masks: list[torch.Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks)
