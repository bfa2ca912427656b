"""From scores and a budget in the user's words to one mask per block."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy
from ..calibration import CalibrationData
from ..config import StructuredPruningConfig
from ..errors import InfeasibleBudgetError, PruningError
from ..offloading import is_offloaded
from .flops import flops_per_unit
from .latency_selection import select_by_latency
from .lengths import Lengths
from .search import search_units
from .targets import PlanSoFar, Selection, Targets


def select_units(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    scores: Mapping[str, torch.Tensor],
    config: StructuredPruningConfig,
    data: CalibrationData,
    lengths: int | Lengths,
    so_far: PlanSoFar | None = None,
) -> Selection:
    """Chooses the units that stay under the budget of `config`.

    Args:
        model: the dense model; measured for a latency budget, never changed.
        anatomy: from `describe_model(model)`.
        scores: one non-negative score per unit, by block key, of every block that is not decided.
        config: budget and restrictions.
        data: decides for all processes where the choice rests on measurements.
        lengths: tokens that costs are counted for; a number is what every block sees.
        so_far: what this function chose for the same budget before, if a part of it is to stay.

    Raises:
        InfeasibleBudgetError: with the smallest reachable value of the budget.
        PruningError: a latency is asked for of a model that is offloaded.
    """
    targets = Targets.of(anatomy, scores, config, so_far)

    def chosen() -> Selection:
        try:
            return _chosen(model, anatomy, targets, config, lengths)
        except InfeasibleBudgetError:
            if so_far is None:
                raise
            # It keeps to the budget: only rounding, or a latency that is measured anew, can say that nothing does.
            return Selection(dict(so_far.masks))

    if config.budget[0] in ("flops", "params"):
        return chosen()
    # One process measures and decides for all.
    return data.broadcast(data.agree(lambda: chosen() if data.is_main else Selection({})))


def _chosen(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    targets: Targets,
    config: StructuredPruningConfig,
    lengths: int | Lengths,
) -> Selection:
    keyword, value = config.budget
    if keyword == "flops":
        return _by_cost(targets, config, value, lambda block: flops_per_unit(block, lengths))
    if keyword == "params":
        return _by_cost(targets, config, value, lambda block: block.parameters_per_unit)
    if keyword == "latency" and value == 1:
        return Selection({block.key: torch.ones(block.units, dtype=torch.bool) for block in anatomy.blocks})
    if is_offloaded(model):
        raise PruningError(
            f"{keyword}={value:g} is measured, and of a model whose weights are offloaded that would be the time that"
            " loading them takes. Use flops= or params=, or load the model without offloading."
        )
    tokens = lengths.tokens if isinstance(lengths, Lengths) else lengths
    return select_by_latency(model, anatomy, targets, config, tokens)


def _by_cost(
    targets: Targets, config: StructuredPruningConfig, fraction: float, unit_cost: Callable[[Block], int]
) -> Selection:
    """A budget that is a sum over units."""
    fixed = sum(targets.fixed_units(block) * unit_cost(block) for block in targets.fixed)
    blocks = (*targets.heads, *targets.filters, *targets.fixed)
    dense = sum(block.units * unit_cost(block) for block in blocks)
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
