"""From scores and a budget in the user's words to one mask per block."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy
from ..calibration import CalibrationData
from ..config import StructuredPruningConfig
from ..errors import InfeasibleBudgetError
from .flops import flops_per_unit
from .latency_selection import select_by_latency
from .lengths import Lengths
from .search import search_units
from .targets import Selection, Targets


def select_units(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    scores: Mapping[str, torch.Tensor],
    config: StructuredPruningConfig,
    data: CalibrationData,
    lengths: int | Lengths,
) -> Selection:
    """Chooses the units that stay under the budget of `config`.

    Args:
        model: the dense model; measured for a latency budget, never changed.
        anatomy: from `describe_model(model)`.
        scores: one non-negative score per unit, by block key.
        config: budget and restrictions.
        data: decides for all processes where the choice rests on measurements.
        lengths: tokens that costs are counted for; a number is what every block sees.

    Raises:
        InfeasibleBudgetError: with the smallest reachable value of the budget.
    """
    targets = Targets.of(anatomy, scores, config)
    keyword, value = config.budget
    if keyword == "flops":
        return _by_cost(targets, config, value, lambda block: flops_per_unit(block, lengths))
    if keyword == "params":
        return _by_cost(targets, config, value, lambda block: block.parameters_per_unit)
    if keyword == "latency" and value == 1:
        return Selection({block.key: torch.ones(block.units, dtype=torch.bool) for block in anatomy.blocks})
    tokens = lengths.tokens if isinstance(lengths, Lengths) else lengths
    # One process measures and decides for all.
    selection = data.agree(
        lambda: select_by_latency(model, anatomy, targets, config, tokens) if data.is_main else Selection({})
    )
    return data.broadcast(selection)


def _by_cost(
    targets: Targets, config: StructuredPruningConfig, fraction: float, unit_cost: Callable[[Block], int]
) -> Selection:
    """A budget that is a sum over units."""
    fixed = sum(block.units * unit_cost(block) for block in targets.fixed)
    dense = fixed + sum(block.units * unit_cost(block) for block in (*targets.heads, *targets.filters))
    name = config.budget[0]
    rest = fraction * dense - fixed
    if rest <= 0:
        raise InfeasibleBudgetError(
            f"{name}={fraction} is out of reach: the blocks that are not to be pruned alone make up"
            f" {fixed / dense:.4f} of the dense model. Raise the budget or widen target_modules.",
            fixed / dense,
        )
    try:
        result = search_units(
            targets.head_scores,
            targets.filter_scores,
            [unit_cost(block) for block in targets.heads],
            [unit_cost(block) for block in targets.filters],
            rest,
            **targets.options(config),
        )
    except InfeasibleBudgetError as error:
        smallest = (fixed + error.smallest) / dense
        raise InfeasibleBudgetError(
            f"{name}={fraction} is out of reach: the smallest reachable value is {smallest:.4f} (units that must stay,"
            " with the rounding asked for). Raise the budget or lower round_to.",
            smallest,
        ) from error
    return targets.selection(result)
