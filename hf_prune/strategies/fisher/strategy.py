"""Fast post-training pruning: gradients → search → rearrangement → repair, each step a room of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from transformers import PreTrainedModel

from ...anatomy import ModelAnatomy
from ...budget import Lengths, data_lengths, select_units
from ...calibration import CalibrationData
from ...recovery.rearrange import rearrange_with_gram
from ...report.clock import StageClock
from ...scores import GradientRows, Labels
from ...surgery import PruningPlan
from ..base import Cut, StagedStrategy
from .config import FisherPruningConfig
from .repair import repair_blocks
from .trials import best_by_trial
from .unit_scores import GradientStatistics, score_candidates


@dataclass(frozen=True)
class FisherStatistics:
    """What there is to know of a model whatever the budget.

    Attributes:
        candidates: scores, by block key, the same on every process. Of several, what is best under a budget is found
            out by trial.
        lengths: tokens that costs are counted for.
        rows: this process's gate gradients, by block key, as far as rearrangement needs them.
    """

    candidates: tuple[Mapping[str, torch.Tensor], ...]
    lengths: int | Lengths
    rows: Mapping[str, GradientRows]


def measure_units(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> FisherStatistics:
    """Scores every head and filter."""
    statistics = GradientStatistics()
    with clock("gradients"):
        lengths = data_lengths(model, anatomy, data, config.sequence_length)
        if config.importance != "magnitude" or config.rearranges:
            statistics = GradientStatistics.collect(
                model,
                anatomy,
                data,
                cast(Labels, config.labels),
                keep_rows=config.rearranges,
                outputs=config.importance == "after_refit",
            )
        candidates = score_candidates(model, anatomy, config, statistics, data)
    return FisherStatistics(candidates, lengths, statistics.rows if config.rearranges else {})


def choose_units(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    clock: StageClock,
    statistics: FisherStatistics,
) -> Cut:
    """Decides which heads and filters go."""
    cuts = [_chosen(model, anatomy, config, data, clock, statistics, scores) for scores in statistics.candidates]
    if len(cuts) == 1:
        return cuts[0]
    with clock("trials"):
        return best_by_trial(model, anatomy, config, data, cuts)


def _chosen(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    clock: StageClock,
    statistics: FisherStatistics,
    scores: Mapping[str, torch.Tensor],
) -> Cut:
    """The cut that some scores lead to."""
    with clock("search"):
        selection = select_units(model, anatomy, scores, config, data, statistics.lengths)
    masks = selection.masks
    if config.rearranges:
        with clock("rearrangement"):
            masks = rearrange_masks(masks, statistics.rows, data)
    plan = PruningPlan.from_masks(anatomy.blocks, [masks[block.key] for block in anatomy.blocks])
    return Cut(plan, statistics.lengths, notes=tuple(selection.notes))


def repair_units(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    clock: StageClock,
    cut: Cut,
) -> Cut:
    """Repairs what stays."""
    notes = list(cut.notes)
    with clock("repair"):
        repairs = repair_blocks(model, anatomy, config, data, cut.plan, notes)
    return replace(cut, repairs=repairs, notes=tuple(notes))


# Kwon et al. 2022, Figure 2.
prune_by_fisher = StagedStrategy(measure_units, choose_units, repair_units)


def rearrange_masks(
    masks: Mapping[str, torch.Tensor], rows: Mapping[str, GradientRows], data: CalibrationData
) -> dict[str, torch.Tensor]:
    """Every block's mask after rearrangement; one Gram matrix is in memory at a time."""
    return {key: rearrange_with_gram(mask, _gram(rows[key], data)) for key, mask in masks.items()}


def _gram(rows: GradientRows, data: CalibrationData) -> torch.Tensor:
    matrix = rows.matrix().double()
    return data.sum(matrix.T @ matrix)
