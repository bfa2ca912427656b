"""Pruning at random: scores from a generator, then the same search as for any other score."""

from __future__ import annotations

from transformers import PreTrainedModel

from ...anatomy import ModelAnatomy
from ...budget import data_lengths, select_units
from ...calibration import CalibrationData
from ...report.clock import StageClock
from ...scores import random_scores
from ...surgery import PruningPlan
from ..base import Cut
from .config import RandomPruningConfig


def prune_at_random(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: RandomPruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> Cut:
    """Decides which heads and filters go; the same on every process."""
    with clock("search"):
        lengths = data_lengths(model, anatomy, data, config.sequence_length)
        values = random_scores(anatomy.blocks, config.seed)
        scores = {block.key: score for block, score in zip(anatomy.blocks, values, strict=True)}
        selection = select_units(model, anatomy, scores, config, data, lengths)
    plan = PruningPlan.from_masks(anatomy.blocks, [selection.masks[block.key] for block in anatomy.blocks])
    return Cut(plan, lengths, notes=tuple(selection.notes))
