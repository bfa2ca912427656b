"""From scores and a budget in the user's words to one mask per block."""

from __future__ import annotations

import math
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
from .rounding import rounded_up
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


def check_budget(
    model: PreTrainedModel, anatomy: ModelAnatomy, config: StructuredPruningConfig, lengths: int | Lengths
) -> None:
    """Raises what `select_units` would raise whatever the scores are, before any are measured."""
    scores = {block.key: torch.zeros(block.units, dtype=torch.float64) for block in anatomy.blocks}
    targets = Targets.of(anatomy, scores, config)
    if config.budget[0] in ("flops", "params"):
        _chosen(model, anatomy, targets, config, lengths)
    elif config.budget[0] in ("latency", "latency_ms"):
        _check_measurable(model, config)


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
    _check_measurable(model, config)
    tokens = lengths.tokens if isinstance(lengths, Lengths) else lengths
    return select_by_latency(model, anatomy, targets, config, tokens)


def _check_measurable(model: PreTrainedModel, config: StructuredPruningConfig) -> None:
    keyword, value = config.budget
    if is_offloaded(model) and not (keyword == "latency" and value == 1):
        raise PruningError(
            f"{keyword}={value:g} is measured, and of a model whose weights are offloaded that would be the time that"
            " loading them takes. Use flops= or params=, or load the model without offloading."
        )


def _by_cost(
    targets: Targets, config: StructuredPruningConfig, fraction: float, unit_cost: Callable[[Block], int]
) -> Selection:
    """A budget that is a sum over units."""
    fixed = sum(targets.fixed_units(block) * unit_cost(block) for block in targets.fixed)
    blocks = (*targets.heads, *targets.filters, *targets.fixed)
    dense = sum(block.units * unit_cost(block) for block in blocks)
    name = config.budget[0]
    rest = fraction * dense - fixed
    try:
        result = search_units(
            targets.head_scores,
            targets.filter_scores,
            [unit_cost(block) for block in targets.heads],
            [unit_cost(block) for block in targets.filters],
            max(rest, 0.5),  # costs are whole numbers, so a half is none
            **targets.options(config),
        )
    except InfeasibleBudgetError as error:
        raise _out_of_reach(name, fraction, fixed, error.smallest, dense) from error
    if rest < 0:
        raise _out_of_reach(name, fraction, fixed, 0, dense)
    return targets.selection(result)


def _out_of_reach(name: str, fraction: float, fixed: int, floor: float, dense: int) -> InfeasibleBudgetError:
    """The error that states the smallest fraction which leaves `floor` beside what the fixed blocks cost."""
    smallest = (fixed + floor) / dense
    while smallest * dense - fixed < floor:  # as the budget is read
        smallest = math.nextafter(smallest, math.inf)
    parts = "units that must stay, with the rounding asked for"
    if fixed:
        parts += f"; the blocks that are not to be pruned alone make up {fixed / dense:.4f}"
    return InfeasibleBudgetError(
        f"{name}={fraction} is out of reach: the smallest reachable value is {rounded_up(smallest)} ({parts}). Raise"
        " the budget, lower round_to or widen target_modules.",
        smallest,
    )
