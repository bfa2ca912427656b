"""Fast post-training pruning: gradients → search → rearrangement → repair, each step a room of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from ...anatomy import ModelAnatomy
from ...budget import PlanSoFar, Selection, check_budget, data_lengths, select_units
from ...calibration import CalibrationData
from ...recovery.rearrange import rearrange_with_gram
from ...report.clock import StageClock
from ...scores import GradientRows
from ..base import Cut, StagedStrategy
from ..scored import cut_of
from .config import FisherPruningConfig
from .iterative import choose_by_groups
from .repair import repair_blocks
from .trials import best_by_trial
from .unit_scores import BLENDS, FisherStatistics

# The part of its step that a choice is kept as.
CHOICE = "masks"
NO_LABELS = "The data has no labels: scores are for the model's own predictions."


def measure_units(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> FisherStatistics:
    """Scores every head and filter; of a choice group by group these are the scores for the first group."""
    with clock("gradients"):
        lengths = data_lengths(model, anatomy, data, config.sequence_length)
        check_budget(model, anatomy, config, lengths)
        return FisherStatistics.collect(model, anatomy, config, data, lengths)


def choose_units(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    clock: StageClock,
    statistics: FisherStatistics,
) -> Cut:
    """Decides which heads and filters go; group by group that takes the repairs as well."""
    stand_in = config.labels is None and statistics.labels == "model"
    if stand_in:
        config = replace(config, labels="model")  # for all groups
    cuts = []
    for scores in statistics.candidates:
        chosen = _chosen(model, anatomy, config, data, clock, statistics, scores)
        cuts.append(cut_of(anatomy, chosen, statistics.lengths))
    best = 0
    if len(cuts) > 1:
        with clock("trials"):
            best = cuts.index(best_by_trial(model, anatomy, config, data, cuts))
    cut = cuts[best]
    if config.iterative:
        if len(cuts) > 1:
            config = replace(config, blend=BLENDS[best])  # once found, it serves all groups
        with clock("groups"):
            cut = choose_by_groups(
                model,
                anatomy,
                config,
                data,
                cut,
                lambda measured, so_far: _chosen(
                    model, anatomy, config, data, StageClock(), measured, measured.candidates[0], so_far
                ),
            )
    return replace(cut, notes=(*cut.notes, NO_LABELS)) if stand_in else cut


def _chosen(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    clock: StageClock,
    statistics: FisherStatistics,
    scores: Mapping[str, torch.Tensor],
    so_far: PlanSoFar | None = None,
) -> Selection:
    """What some scores lead to. A step of `data.steps`: what rests on measured times would not come out alike again."""
    step = data.steps.step("choice")
    kept = step.read(CHOICE, {block.key: (torch.bool, (block.units,)) for block in anatomy.blocks})
    if kept is not None:
        return Selection(kept[0], json.loads(kept[1]))
    with clock("search"):
        selection = select_units(model, anatomy, scores, config, data, statistics.lengths, so_far)
    if config.rearranges:
        with clock("rearrangement"):
            masks = {key: selection.masks[key] for key in statistics.rows}
            selection.masks.update(rearrange_masks(masks, statistics.rows, data))
    masks = {key: mask.clone() for key, mask in selection.masks.items()}  # as they come they may share memory
    step.write(CHOICE, masks, json.dumps(selection.notes))
    return selection


def repair_units(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    clock: StageClock,
    cut: Cut,
) -> Cut:
    """Repairs what stays, unless it is repaired already."""
    if config.iterative:
        return cut
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
