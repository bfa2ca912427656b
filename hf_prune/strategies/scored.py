"""The shortest one-shot strategy: scores that are at hand, and the search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy
from ..budget import data_lengths, select_units
from ..calibration import CalibrationData
from ..config import StructuredPruningConfig
from ..report.clock import StageClock
from ..surgery import PruningPlan
from .base import Cut


def cut_by_scores(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: StructuredPruningConfig,
    data: CalibrationData,
    clock: StageClock,
    values: Sequence[torch.Tensor],
) -> Cut:
    """Decides which heads and filters go under a budget, and repairs nothing; the same on every process.

    Args:
        values: one tensor of scores per block.
    """
    with clock("search"):
        lengths = data_lengths(model, anatomy, data, config.sequence_length)
        scores = {block.key: score for block, score in zip(anatomy.blocks, values, strict=True)}
        selection = select_units(model, anatomy, scores, config, data, lengths)
    plan = PruningPlan.from_masks(anatomy.blocks, [selection.masks[block.key] for block in anatomy.blocks])
    return Cut(plan, lengths, notes=tuple(selection.notes))
