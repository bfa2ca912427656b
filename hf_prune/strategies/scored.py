"""What most one-shot strategies are made of: one score per unit, and the search for the best under a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy
from ..budget import Lengths, Selection, data_lengths, select_heads, select_units
from ..calibration import CalibrationData
from ..config import StructuredPruningConfig
from ..count_budgets import HeadBudgetConfig
from ..report.clock import StageClock
from ..surgery import PruningPlan
from .base import Cut


@dataclass(frozen=True)
class ScoredUnits:
    """How important the units are.

    Attributes:
        scores: one tensor per block, by key, the same on every process.
        lengths: tokens that costs are counted for.
    """

    scores: Mapping[str, torch.Tensor]
    lengths: int | Lengths

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        anatomy: ModelAnatomy,
        config: Any,
        data: CalibrationData,
        values: Sequence[torch.Tensor],
    ) -> ScoredUnits:
        """With one tensor of scores per block, and the lengths that the calibration data shows."""
        scores = {block.key: score for block, score in zip(anatomy.blocks, values, strict=True)}
        return cls(scores, data_lengths(model, anatomy, data, config.sequence_length))


def choose_by_scores(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: StructuredPruningConfig,
    data: CalibrationData,
    clock: StageClock,
    units: ScoredUnits,
) -> Cut:
    """Decides which heads and filters go under a budget; the same on every process."""
    with clock("search"):
        selection = select_units(model, anatomy, units.scores, config, data, units.lengths)
    return cut_of(anatomy, selection, units.lengths)


def choose_heads_by_scores(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: HeadBudgetConfig,
    data: CalibrationData,
    clock: StageClock,
    units: ScoredUnits,
) -> Cut:
    """Decides which heads go, the same fraction of every layer's; the same on every process."""
    with clock("search"):
        selection = select_heads(anatomy, units.scores, config, per_layer=True)
    return cut_of(anatomy, selection, units.lengths)


def cut_of(anatomy: ModelAnatomy, selection: Selection, lengths: int | Lengths) -> Cut:
    """The cut that keeps what was selected, without repairs."""
    plan = PruningPlan.from_masks(anatomy.blocks, [selection.masks[block.key] for block in anatomy.blocks])
    return Cut(plan, lengths, notes=tuple(selection.notes))
