"""Pruning at random: scores from a generator, then the same search as for any other score."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ...anatomy import ModelAnatomy
from ...calibration import CalibrationData
from ...report.clock import StageClock
from ...scores import RandomScores, random_scores
from ..base import Cut
from ..mask_pruner import chosen
from ..scored import cut_by_scores
from ..training import TrainingPruner
from ..unit_pruner import UnitPruner
from ..weight_pruner import WeightPruner
from .config import RandomPruningConfig


def prune_at_random(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: RandomPruningConfig,
    data: CalibrationData,
    clock: StageClock,
) -> Cut:
    """Decides which heads and filters go; the same on every process."""
    return cut_by_scores(model, anatomy, config, data, clock, random_scores(anatomy.blocks, config.seed))


def train_at_random(model: Any, config: RandomPruningConfig, steps: int) -> TrainingPruner:
    """Removes weights, or heads and filters, at random while the model is trained."""
    if config.prunes_weights:
        return WeightPruner(model, config, steps, chosen(model, config), RandomScores(config.seed))
    return UnitPruner(model, config, steps, partial(_drawn, seed=config.seed))


def _drawn(model: Any, anatomy: ModelAnatomy, seed: int) -> list[torch.Tensor]:
    return random_scores(anatomy.blocks, seed)
